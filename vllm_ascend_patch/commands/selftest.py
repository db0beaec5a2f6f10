# SPDX-License-Identifier: Apache-2.0
"""The ``selftest`` command: starts each part's processes, limits their time, puts the results together.

What is tried is in ``vllm_ascend_patch/selftest``. The report names no host, address
or path, so that it can be shown to anyone.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from vllm_ascend_patch.selftest.part import MARK
from vllm_ascend_patch.selftest.result import ALLOWED, Result

from .calling import call
from .terminal import console, table

PARTS = ("operators", "device", "ranks", "model")
SECONDS = {"operators": 80.0, "device": 40.0, "ranks": 80.0, "model": 90.0}
"""Limits of the parts: under five minutes in all. Virtual NPUs, which compute on the host, get several times as long."""

VIRTUAL = "VIRTUAL_NPU_RUNTIME"


def _run(part: str, devices: int) -> list[Result]:
    """The results of a part; what its processes did not come to say is a failure."""
    if part == "ranks" and devices < 2:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    size = devices if part == "ranks" else 1
    deadline = time.monotonic() + _limit(part)
    processes = [_start(part, rank, size, address) for rank in range(size)]
    try:
        ends = [_end(part, process, deadline) for process in processes]
    finally:
        for process in processes:
            _kill(process)
    return _together(ends)


def _limit(part: str) -> float:
    return SECONDS[part] * (4 if VIRTUAL in os.environ else 1)


def _start(part: str, rank: int, size: int, address: str) -> subprocess.Popen[str]:
    arguments = [part, str(rank), str(size), address]
    return subprocess.Popen(
        [sys.executable, "-m", "vllm_ascend_patch.selftest.part", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _end(part: str, process: subprocess.Popen[str], deadline: float) -> list[Result]:
    """What one process said, with a last line if it did not end well."""
    try:
        output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
        how = "" if process.returncode == 0 else f"its process ended with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        _kill(process)
        output, _ = process.communicate()
        how = f"not done within {_limit(part):.0f} s"
    lines = output.splitlines()
    found = [Result(**json.loads(line.removeprefix(MARK))) for line in lines if line.startswith(MARK)]
    if how:
        last = next((line for line in reversed(lines) if line.strip() and not line.startswith(MARK)), "nothing")
        after = f"after {found[-1].name}" if found else "before anything was checked"
        found.append(Result(part, f"{part}, the process", False, f"{how}, {after}; the last it said: {last[:300]}"))
    return found


def _kill(process: subprocess.Popen[str]) -> None:
    """The process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _together(ranks: list[list[Result]]) -> list[Result]:
    """One result per name: the first failure if any rank has one, else rank 0's figures."""
    found: dict[str, Result] = {}
    for rank, results in enumerate(ranks):
        for result in results:
            known = found.get(result.name)
            if not result.ok and len(ranks) > 1:
                result = replace(result, found=f"rank {rank}: {result.found}")
            if known is None or (known.ok and not result.ok):
                found[result.name] = result
    return list(found.values())


def _anonymous(text: str) -> str:
    """Without this host's name, addresses, and paths above the file."""
    text = text.replace(socket.gethostname(), "HOST")
    text = re.sub(r"\b\d{1,3}(\.\d{1,3}){3}\b(:\d+)?", "ADDRESS", text)
    text = re.sub(r"\[[0-9A-Fa-f:.%\w]*:[0-9A-Fa-f:.%\w]*\]", "ADDRESS", text)
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", text)


def _software() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("vllm-ascend-patch", "torch", "torch_npu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found["npus"] = "virtual" if VIRTUAL in os.environ else "real"
    return found


def _devices() -> int:
    """NPUs that torch_npu sees, asked in a process of its own."""
    code = "import torch, torch_npu; print('NPUS', torch.npu.device_count())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    match = re.search(r"^NPUS (\d+)$", done.stdout, re.MULTILINE)
    if match is None or match[1] == "0":
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        reason = "torch_npu sees none" if match else (lines[-1] if lines else "torch_npu said nothing")
        raise click.ClickException(
            f"no NPU: {reason}. `vllm-ascend-patch doctor` looks closer; `virtual-npu --` simulates some"
        )
    return int(match[1])


@click.command("selftest")
@click.option(
    "--devices", type=click.IntRange(1), help="Use this many NPUs, from the first on.  [default: all, at most 8]"
)
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this part; may be given more than once."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("selftest.json"),
    show_default=True,
    help="Where the report is written.",
)
def selftest(devices: int | None, parts: tuple[str, ...], report: Path) -> int:
    """Try on this machine's NPUs what the package stands on. Exit code 0 only if all of it holds.

    Takes under five minutes and downloads nothing. The report names no host and no address.
    """
    there = _devices()
    if devices is not None and devices > there:
        raise click.BadParameter(f"{devices} NPUs were asked for, there are {there}", param_hint="--devices")
    count = min(there, 8) if devices is None else devices
    started = time.monotonic()
    results = [
        replace(result, found=_anonymous(result.found))
        for part in PARTS
        if not parts or part in parts
        for result in _run(part, count)
    ]
    seconds = round(time.monotonic() - started, 1)
    ok = bool(results) and all(result.ok for result in results)
    _write(report, {"ok": ok, "devices": count, "seconds": seconds, "allowed": ALLOWED, **_software()}, results)
    rows = [(result.part, result.name, "ok" if result.ok else "fail", result.found) for result in results]
    out = console()
    out.print(table(f"Self-test on {count} NPU(s)", ("part", "check", "holds", "found"), rows))
    out.print(ALLOWED)
    failed = [result.name for result in results if not result.ok]
    out.print(
        f"All {len(results)} checks hold."
        if ok
        else f"{len(failed)} of {len(results)} do not hold: {', '.join(failed)}."
    )
    out.print(f"{seconds:.0f} s. Report for an issue: {report}")
    return 0 if ok else 1


def _write(report: Path, head: dict[str, Any], results: Sequence[Result]) -> None:
    report.write_text(json.dumps({**head, "results": [result.as_dict() for result in results]}, indent=1) + "\n")


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments; returns the exit code."""
    return call(selftest, argv, "selftest")
