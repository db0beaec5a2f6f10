# SPDX-License-Identifier: Apache-2.0
"""Runs one configuration of one release in processes of its own, watched, and returns a plain record of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.environment import clean_environment
from tests.support.npus import npu_command
from tests.support.processes import has_result, kill_session, result_of, start

from .configurations import Configuration, judge, read_traces, read_workers

_running: set[subprocess.Popen[str]] = set()
_stopping = False
_ERRORS = ("Error", "Refused", "Device", "Late", "Exception", "NotServable")
_REFUSALS = ("PatchRefused", "NoDevice", "AppliedTooLate", "EnvError")


def run(
    configuration: Configuration,
    paths: list[Path],
    model: Path,
    cases: list[dict[str, Any]],
    arguments: dict[str, Any],
    seconds: float,
    log: Path,
    refusal: str | None = None,
) -> dict[str, Any]:
    """Run the engine and judge it: ``outcome`` is ``works``, ``refused``, ``wrong``, ``fails`` or ``hangs``.

    Args:
        paths: folders for ``PYTHONPATH``, the release's sources first.
        cases: prompts with the oracle's answers.
        arguments: engine arguments that the release needs.
        log: file that takes the engine's output.
        refusal: what has to be said in place of serving, None where the release has to serve.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "trace.json"
        job = configuration.job(model, [case["prompt"] for case in cases], folder, arguments)
        devices = configuration.tp * configuration.dp
        command = npu_command([sys.executable, "-m", "scripts.matrix.engine"], devices, configuration.soc, "2GiB")
        environment = _environment(paths) | {"VLLM_ASCEND_PATCH_TRACE": str(trace), **configuration.environment}
        returncode = _watched(command, json.dumps(job), environment, seconds, log)
        summary, problems = read_workers(configuration, folder)
        steps, more = read_traces(configuration, trace)
        summary |= steps
        problems += more
    record: dict[str, Any] = {"configuration": configuration.name, "seconds": round(time.monotonic() - began, 1)}
    text = log.read_text(errors="replace")
    if returncode is None:
        return {**record, "outcome": "hangs", "why": f"no result within {seconds:.0f} s"}
    if not has_result(text):
        why = last_error(text)
        if refusal is not None and refusal in why:
            return {**record, "outcome": "refused", "why": refusal}
        refused = any(name in why for name in _REFUSALS)
        return {**record, "outcome": "refused" if refused else "fails", "why": why}
    answers = [case["answer"] for case in cases]
    result = result_of(subprocess.CompletedProcess(command, returncode, text))
    problems = judge(configuration, result, answers) + problems
    if refusal is not None:
        problems.append(f"served, though {refusal}")
    record |= {"outcome": "wrong" if problems else "works", **summary}
    return {**record, "why": "; ".join(problems)} if problems else record


def _environment(paths: list[Path]) -> dict[str, str]:
    """A clean environment with ``paths`` first and then this very tree, whatever is installed."""
    clean = clean_environment(VLLM_NO_USAGE_STATS="1")
    return {**clean, "PYTHONPATH": os.pathsep.join([*map(str, paths), clean["PYTHONPATH"]])}


def _watched(command: list[str], text: str, environment: dict[str, str], seconds: float, log: Path) -> int | None:
    """The exit code of ``command``, or None when it was killed after ``seconds``; its whole session is gone afterwards."""
    with log.open("w") as output:
        process = start(command, environment, stdin=subprocess.PIPE, stdout=output)
    _running.add(process)
    try:
        if not _stopping:
            process.communicate(text, timeout=seconds)
        if _stopping:
            raise RuntimeError("stopped")
        return process.returncode
    except subprocess.TimeoutExpired:
        return None
    finally:
        _running.discard(process)
        kill_session(process)
        process.wait()


def stop_all() -> None:
    """Kill every engine that runs; the threads that watch them come to an end and start no other."""
    global _stopping
    _stopping = True
    for process in list(_running):
        kill_session(process)


def last_error(text: str) -> str:
    """The first line of the log's last Python error that is not about another process having ended, nor one that Python
    ignored while it took the process down."""
    found, ignored = "no output", False
    for line in text.splitlines():
        ignored = ignored or "Exception ignored in" in line
        bare = line.split("]: ", 1)[-1].split(") ERROR", 1)[-1].strip()
        name, colon, rest = bare.partition(": ")
        last = name.rsplit(".", 1)[-1].rsplit(" ", 1)[-1]
        if colon and rest and last[:1].isupper() and last.endswith(_ERRORS):
            if ignored or "Engine core" in rest or "WorkerProc" in rest or "See stack trace" in rest:
                ignored = False
                continue
            found = f"{last}: {rest}"
    return found[:600]
