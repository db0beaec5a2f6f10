# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, whenever it comes, leaves no process, port or shared memory of the demo behind, and is answered by "stopped"."""

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

from tests.support.environment import ROOT

START_SECONDS = 500.0

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(900)]

# A moment, by what the server's log says first then.
THE_MODEL_LOADS = "NPU worker on"
FIVE_REQUESTS_RUN = '"POST /v1/chat/completions HTTP/1.1" 200'  # the single one has been answered


def wait_for(text: str, log: Path, demo: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if log.exists() and text in log.read_text(errors="replace"):
            return
        if demo.poll() is not None:
            output, _ = demo.communicate()
            pytest.fail(f"the demo ended with exit code {demo.returncode} before {text!r}\n{output}")
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


def running(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; an ended one whose parent is gone stays a zombie until init has looked at it."""
    found = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def command_lines(family: list[psutil.Process]) -> set[tuple[str, ...]]:
    """Those of the processes that still run: vLLM starts short-lived ones, too."""
    found = set()
    for process in family:
        with contextlib.suppress(psutil.Error):
            found.add(tuple(process.cmdline()))
    return found


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("moment", [THE_MODEL_LOADS, FIVE_REQUESTS_RUN], ids=["model loads", "requests run"])
def test_ctrl_c_leaves_nothing_behind(moment: str, times: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.demo.run", "--keep", str(tmp_path), "--max-tokens", "200"]
    demo = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    family: list[psutil.Process] = []
    try:
        wait_for(moment, tmp_path / "server.log", demo)
        family = psutil.Process(demo.pid).children(recursive=True)
        names = shared_memory(family)
        (line,) = {line for line in command_lines(family) if "--port" in line}
        port = int(line[line.index("--port") + 1])
        for _ in range(times):  # the second one of somebody who does not want to wait for vLLM's shutdown
            os.killpg(demo.pid, signal.SIGINT)  # what a terminal does
            time.sleep(1)
        output, _ = demo.communicate(timeout=100)
        assert demo.returncode == 130, output
        assert output.rstrip().endswith("stopped"), output
        assert "Traceback" not in output
        assert running(family) == []
        assert [str(name) for name in names if name.exists()] == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still listens"
    finally:
        for process in [*family, psutil.Process(demo.pid)] if demo.poll() is None else family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        demo.wait(10)
