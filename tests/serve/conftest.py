# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, and engines in subprocesses that are watched and never outlive their test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo.server import npu_command

from . import tiny_models

SCRIPT = Path(__file__).with_name("engine_script.py")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a family, made once per test session."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda family: tiny_models.make(family, folder)


@pytest.fixture
def run_engine(tmp_path: Path) -> Callable[..., Any]:
    """Run ``engine_script.py`` on NPUs; the result is what it reports. Fails with its output when it hangs or breaks."""

    def run(job: dict[str, Any], devices: int, soc: str = "A2", seconds: float = 600, **environment: str) -> Any:
        done = run_script([sys.executable, str(SCRIPT)], json.dumps(job), devices, tmp_path, soc, seconds, environment)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-6000:]}"
        assert lines, f"no result\n{done.stdout[-6000:]}"
        return {**json.loads(lines[-1].removeprefix("RESULT ")), "log": done.stdout}

    return run


def run_script(
    command: list[str],
    text: str,
    devices: int,
    folder: Path,
    soc: str = "A2",
    seconds: float = 600,
    environment: dict[str, str] | None = None,
    memory: str = "2GiB",
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` on NPUs in a session of its own, its output and errors together; kill all of it after ``seconds``."""
    log = folder / "output.log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            npu_command(command, devices, soc, memory),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**clean, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO", **(environment or {})},
        )
    try:
        process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {seconds:.0f} s: {command}\n{log.read_text(errors='replace')[-8000:]}")
    finally:
        # The session's processes are gone when all went well; nothing may outlive the test when it did not.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, log.read_text(errors="replace"))
