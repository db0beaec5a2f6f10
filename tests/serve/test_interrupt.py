# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while the demo's server starts leaves no process, no port and no shared memory, and says that it stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 500.0

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(900)]

PHASE = "NPU worker on"  # in the server's log: the workers are there and load the model


def wait_for(text: str, log: Path, demo: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if log.exists() and text in log.read_text(errors="replace"):
            return
        if demo.poll() is not None:
            pytest.fail(f"the demo ended with exit code {demo.returncode} before {text!r}\n{demo.stdout.read()}")
        time.sleep(0.1)
    pytest.fail(f"{text!r} did not appear within {START_SECONDS:.0f} s\n{log.read_text(errors='replace')[-4000:]}")


def shared_memory(family: list[psutil.Process]) -> set[Path]:
    """The named shared memory that the processes have mapped."""
    found = set()
    for process in family:
        try:
            found |= {Path(region.path) for region in process.memory_maps() if region.path.startswith("/dev/shm/")}
        except psutil.Error:
            continue
    return found


def command_lines(family: list[psutil.Process]) -> set[tuple[str, ...]]:
    """Those of the processes that still run: vLLM starts short-lived ones, too."""
    found = set()
    for process in family:
        with contextlib.suppress(psutil.Error):
            found.add(tuple(process.cmdline()))
    return found


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/demo/run.py", "--keep", str(tmp_path), "--max-tokens", "200"]
    demo = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    family: list[psutil.Process] = []
    try:
        wait_for(PHASE, tmp_path / "server.log", demo)
        family = psutil.Process(demo.pid).children(recursive=True)
        names = shared_memory(family)
        (line,) = {line for line in command_lines(family) if "--port" in line}
        port = int(line[line.index("--port") + 1])
        os.killpg(demo.pid, signal.SIGINT)  # what a terminal does
        output, _ = demo.communicate(timeout=100)
        assert demo.returncode == 130, output
        assert output.rstrip().endswith("stopped"), output
        assert "Traceback" not in output
        assert [p for p in family if p.is_running()] == []
        assert [str(name) for name in names if name.exists()] == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still listens"
    finally:
        for process in [*family, psutil.Process(demo.pid)] if demo.poll() is None else family:
            if process.is_running():
                process.kill()
        demo.wait(10)
