# SPDX-License-Identifier: Apache-2.0
"""Runs the scripts of this folder on NPUs: the command, its environment, and what must be true when it is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.environment import clean_environment
from tests.support.installed import needs_runner_v2
from tests.support.npus import npu_command
from tests.support.processes import run
from vllm_ascend_patch.releases import runner

ENGINE = "tests.serve.engine_script"
RUNNERS: dict[str, dict[str, str]] = {"V1": {}, "V2": {runner.VARIABLE: "1"}}
"""vLLM's model runners, and the environment that asks for them."""
ALSO_ON_V2 = ["V1", pytest.param("V2", marks=[needs_runner_v2, pytest.mark.slow])]
"""The runners as a test's parameter: V1 as the test is marked, V2 among the slow tests."""


def run_script(
    module: str,
    *arguments: str,
    text: str,
    devices: int,
    folder: Path,
    soc: str = "A2",
    seconds: float = 600,
    environment: dict[str, str] | None = None,
    memory: str = "2GiB",
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` on NPUs with ``text`` as its input; ``stdout`` has its errors, too."""
    command = npu_command([sys.executable, "-m", module, *arguments], devices, soc, memory)
    variables = clean_environment(VLLM_LOGGING_LEVEL="INFO") | (environment or {})
    return run(command, seconds=seconds, environment=variables, text=text, log=folder / "output.log")


def job_for(
    checkpoint: Path,
    prompts: list[list[int]],
    max_tokens: int,
    tp: int = 1,
    dp: int = 2,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A job for ``engine_script.py``: experts are distributed wherever there is more than one rank.

    Without ``arguments`` an engine of one worker shares its process: one generation of processes less, each of which
    imports vLLM.
    """
    if arguments is None:
        arguments = {"distributed_executor_backend": "uni"} if tp == 1 else {}
    return {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": tp * dp > 1,
        "prompts": prompts,
        "max_tokens": max_tokens,
        "many": 10,
        "arguments": arguments,
    }


def runs(model_runner: str, log: str) -> bool:
    """Whether the workers said that this model runner serves."""
    return (f"({model_runner} model runner)" in log) and not any(
        f"({other} model runner)" in log for other in RUNNERS.keys() - {model_runner}
    )


def chosen(log: str) -> set[str]:
    """The MoE communication methods that the workers said they use."""
    return set(re.findall(r"MoE communication: (\w+) for", log))


def refused(
    checkpoint: Path,
    tmp_path: Path,
    devices: int = 1,
    soc: str = "A2",
    environment: dict[str, str] | None = None,
    **changes: Any,
) -> str:
    """Run the engine script with ``changes``; return what it printed. It must fail, and leave no process."""
    job = {"model": str(checkpoint), "tp": 1, "dp": 1, "ep": False, "prompts": [[5]], "max_tokens": 2, **changes}
    done = run_script(ENGINE, text=json.dumps(job), devices=devices, folder=tmp_path, soc=soc, environment=environment)
    assert done.returncode != 0, done.stdout[-3000:]
    left = [p for p in psutil.process_iter(["cmdline"]) if str(checkpoint) in " ".join(p.info["cmdline"] or [])]
    assert not left
    return done.stdout
