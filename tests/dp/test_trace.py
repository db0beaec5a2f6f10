# SPDX-License-Identifier: Apache-2.0
"""The step trace as it is written: what a killed, a hanging or a forked process leaves, and a disk that is full."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.environment import ROOT
from vllm_ascend_patch import envs
from vllm_ascend_patch.commands.trace import read_trace
from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams.step.session import open_trace


def _steps(path: Path) -> list[int]:
    return [event["args"]["step"] for event in read_trace(path) if event["ph"] == "i"]


def _wait_for(path: Path, steps: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() or len(_steps(path)) < steps:
        assert time.monotonic() < deadline, f"{path} does not get {steps} steps"
        time.sleep(0.05)


def test_what_a_process_traced_can_be_read_while_it_hangs_and_after_it_was_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from vllm_ascend_patch.core import trace\n"
        "trace.start(sys.argv[1], 3)\n"
        "for step in range(3): trace.instant('moe', {'step': step})\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "trace.json")], cwd=ROOT)
    try:
        file = tmp_path / "trace.rank3.json"
        _wait_for(file, 3)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert _steps(file) == [0, 1, 2]
    finally:
        process.kill()


def test_a_forked_process_adds_nothing_to_its_parents_trace(tmp_path: Path) -> None:
    file = trace.start(tmp_path / "trace.json", 0)
    trace.instant("moe", {"step": 0})
    child = os.fork()
    if child == 0:
        trace.instant("moe", {"step": 1})
        trace.stop()
        os._exit(1 if trace.enabled() else 0)
    assert os.waitpid(child, 0)[1] == 0
    trace.instant("moe", {"step": 2})
    trace.stop()
    assert _steps(file) == [0, 2]


def test_a_path_that_cannot_be_written_is_one_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ASCEND_PATCH_TRACE", "/dev/null/trace.json")
    with pytest.raises(
        envs.EnvError, match=r"TRACE=/dev/null/trace.json: /dev/null cannot be written \(.*\); name a file"
    ):
        open_trace(0)
    assert not trace.enabled()


def test_a_full_disk_ends_the_trace_and_not_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = trace.start(tmp_path / "trace.json", 0)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = trace._writer
        assert writer is not None
        os.dup2(full, writer._file.fileno())
        with caplog.at_level(logging.ERROR, logger="vllm_ascend_patch"):
            trace.instant("moe", {"step": 0})
            trace.stop()
    finally:
        trace.stop()
        os.close(full)
    assert caplog.messages == [f"the trace {file} ends here: No space left on device"]
    assert not trace.enabled()
    trace.instant("moe", {"step": 1})
