# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, and engines in subprocesses that are watched and never outlive their test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.processes import result_of

from .scripts import ENGINE, run_script


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a family, made once per test session."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda family: tiny_models.make(family, folder)


@pytest.fixture
def run_engine(tmp_path: Path) -> Callable[..., Any]:
    """Run ``engine_script.py`` on NPUs; the result is what it reports. Fails with its output when it hangs or breaks."""

    def run(job: dict[str, Any], devices: int, soc: str = "A2", seconds: float = 600, **environment: str) -> Any:
        done = run_script(
            ENGINE,
            text=json.dumps(job),
            devices=devices,
            folder=tmp_path,
            soc=soc,
            seconds=seconds,
            environment=environment,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-6000:]}"
        return {**result_of(done), "log": done.stdout}

    return run
