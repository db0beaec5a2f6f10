# SPDX-License-Identifier: Apache-2.0
"""Runs commands in sessions of their own, limited in time: whatever happens, no process of theirs is left behind.

What a program tells the one that started it stands on a line ``RESULT <json>``. Knows neither vLLM nor torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .environment import ROOT, clean_environment, without_devices
from .npus import virtual_npu_command

_RESULT = "RESULT "


def report(result: Any) -> None:
    """Print what ``result_of`` reads."""
    print(_RESULT + json.dumps(result), flush=True)


def has_result(output: str) -> bool:
    """True when the program got as far as its result."""
    return any(line.startswith(_RESULT) for line in output.splitlines())


def result_of(done: subprocess.CompletedProcess[str]) -> Any:
    """What the program reported; an AssertionError with the end of its output when it did not get so far."""
    assert has_result(done.stdout), (
        f"no result, exit code {done.returncode}\n{done.stdout[-6000:]}\n{(done.stderr or '')[-5000:]}"
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    return json.loads(lines[-1].removeprefix(_RESULT))


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int | IO[str] | None = None,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.STDOUT,
) -> subprocess.Popen[str]:
    """``command`` at the repository's root as the first process of a new session; ``kill_session`` ends all of it."""
    return subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=dict(environment),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def kill_session(process: subprocess.Popen[str]) -> None:
    """End the process and whatever else runs in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    text: str | None = None,
    log: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end, in a clean environment if none is given.

    Args:
        text: its standard input; without, it has none of its own.
        log: file that takes its output and errors together, which ``stdout`` of the result then is.

    Raises:
        TimeoutError: it still ran after ``seconds``; with the end of what it printed.
    """
    with contextlib.ExitStack() as stack:
        output = subprocess.PIPE if log is None else stack.enter_context(log.open("w"))
        process = start(
            command,
            clean_environment() if environment is None else environment,
            stdin=None if text is None else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.PIPE if log is None else subprocess.STDOUT,
        )
        late = False
        try:
            out, errors = process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            kill_session(process)
            out, errors = process.communicate()
        finally:
            # The session's processes are gone when all went well; nothing may outlive this call when it did not.
            kill_session(process)
            process.wait()
    if log is not None:
        out = log.read_text(errors="replace")
    if late:
        raise TimeoutError(f"hang: {command} after {seconds:g} s\n{out[-8000:]}\n{(errors or '')[-4000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def under_virtual_npu(
    *arguments: str,
    devices: int = 1,
    soc: str = "A2",
    seconds: float = 180,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` on virtual NPUs, in a clean environment with ``environment`` added."""
    command = virtual_npu_command([sys.executable, *arguments], devices, soc)
    return run(command, seconds=seconds, environment=clean_environment(**(environment or {})))


def run_python(source: str, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    """The standard output of a program without devices; an AssertionError with all of its output when it fails."""
    command = [sys.executable, "-c", textwrap.dedent(source), *arguments]
    done = run(command, seconds=seconds, environment=without_devices() if environment is None else environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
