# SPDX-License-Identifier: Apache-2.0
"""Runs one file of upstream's tests in a process of its own, on (virtual) NPUs, and says what became of each test.

Judges nothing: whether an outcome is right is ``results.py``'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import vllm_ascend_patch
from tests.support.environment import ROOT, clean_environment
from tests.support.npus import npu_command
from tests.support.processes import run

from . import recorder
from .lanes import Run

_DEVICES = 8
_MEMORY = "1GiB"
"""Of each virtual device: engines fill what there is."""
_PLUGINS = ("recorder", "kernels")


@dataclass(frozen=True)
class Outcome:
    """What became of one test: ``passed``, ``skipped`` or ``failed``, and what it said."""

    test: str
    state: str
    words: str = ""


def outcomes(what: Run, paths: list[Path], environment: dict[str, str], log: Path) -> list[Outcome]:
    """Run the file to its end, or to its time limit.

    Args:
        paths: the changed copy of the tests, then folders with packages that only they import.
        environment: for the local hub.
        log: takes what the tests print.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record")
        variables = clean_environment(
            **environment,
            **what.environment,
            VLLM_ASCEND_PATCH="1",
            PYTHONSAFEPATH="1",  # this tree has a package of tests, too
            PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),  # servers start as "vllm"
            PYTHONPATH=":".join(map(str, [*paths, Path(vllm_ascend_patch.__file__).parents[1], ROOT])),
            **{recorder.VARIABLE: str(record)},
        )
        file = str(paths[0] / "tests" / what.file)
        if what.torchrun:
            return _torchrun(what, file, variables, log)
        command = [sys.executable, "-m", "pytest", "-q", *(f"-pscripts.upstream_tests.{name}" for name in _PLUGINS)]
        command += ["--rootdir", str(paths[0]), "-c", str(paths[0] / "pyproject.toml"), file]
        command += ["-k", what.select] if what.select else []
        end = "it ended its process"
        try:
            run(npu_command(command, _DEVICES, memory=_MEMORY), seconds=what.seconds, environment=variables, log=log)
        except TimeoutError:
            end = f"not ended within {what.seconds:g} s, the limit of its file"
        finally:
            _end_servers(record)
        lines = record.read_text().splitlines() if record.is_file() else []
    return list(_read(lines, what, end))


def _end_servers(record: Path) -> None:
    """End what the run has left: upstream's servers have sessions of their own, but the environment of their run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(recorder.VARIABLE) == str(record):
                process.kill()


def _torchrun(what: Run, file: str, variables: dict[str, str], log: Path) -> list[Outcome]:
    """A script is one test, which passes when each of its processes ends well."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={what.torchrun}", file]
    try:
        done = run(npu_command(command, _DEVICES, memory=_MEMORY), seconds=what.seconds, environment=variables, log=log)
    except TimeoutError:
        return [Outcome("script", "failed", f"not ended within {what.seconds:g} s")]
    return [
        Outcome("script", "failed" if done.returncode else "passed", done.stdout[-6000:] if done.returncode else "")
    ]


def _read(lines: list[str], what: Run, end: str) -> Iterator[Outcome]:
    collected: list[str] = []
    last: dict[str, Outcome] = {}
    for line in map(json.loads, lines):
        if "collected" in line:
            collected = line["collected"]
            continue
        name = line["test"].partition("::")[2] or "collection"
        known = last.get(name)
        if known is None or known.state != "failed":
            last[name] = Outcome(name, line["outcome"], line["words"])
    for node in collected:
        last.setdefault(node.partition("::")[2], Outcome(node.partition("::")[2], "begun", "not begun: "))
    if not last:
        yield Outcome("collection", "failed", f"no test of {what.file} was collected: {end}")
    for outcome in last.values():
        yield Outcome(outcome.test, "failed", outcome.words + end) if outcome.state == "begun" else outcome
