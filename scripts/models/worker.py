# SPDX-License-Identifier: Apache-2.0
"""One warm process: has vLLM and transformers imported, forks a process for each checkpoint, engine rank and judgement.

Reads ``{"families": [...], "folder": ...}`` from standard input; prints a line ``RESULT`` for each family as it is done.
Touches no device itself, and computes nothing: threads and contexts do not survive a fork.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import contextlib
import ctypes
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.environment import free_port
from tests.support.processes import report

from . import checkpoints, engine, images, judge
from .families import FAMILIES, VOCABULARY, Family
from .layouts import LAYOUTS

_PR_SET_PDEATHSIG = 1
SECONDS = 150.0
"""Of one engine, or of one checkpoint or judgement."""


def main() -> None:
    job = json.load(sys.stdin)
    _warm_up()
    for name in job["families"]:
        family = FAMILIES[name]
        report({"family": name, **run(family, Path(job["folder"]) / f"{name}-{family.digest}")})


def _warm_up() -> None:
    """Import what every child needs, and let vLLM look at models' classes in this process, not in one of their own each."""
    torch.set_num_threads(1)
    images.make_importable()  # before transformers, which looks for torchvision
    import transformers
    import vllm.entrypoints.llm
    import vllm.model_executor.model_loader
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor  # noqa: F401
    from vllm.model_executor.models import registry

    import vllm_ascend_patch.npu.attention.backend
    import vllm_ascend_patch.npu.worker  # noqa: F401

    def inspect(model: Any) -> Any:
        return registry._ModelInfo.from_model_cls(model.load_model_cls())

    registry._LazyRegisteredModel.inspect_model_cls = inspect
    assert transformers.AutoModelForCausalLM  # which is imported when it is asked for


def run(family: Family, folder: Path) -> dict[str, Any]:
    """The outcome of every layout of one family; of the first alone where it is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    made = _in_processes([lambda: checkpoints.make(family, folder)], folder / "checkpoint.log")[0]
    if "crash" in made:
        return {"layouts": {family.layouts[0]: {"outcome": "not made", "why": made["crash"]}}}
    prompts = _prompts(family)
    found: dict[str, dict[str, Any]] = {}
    for name in family.layouts:
        found[name] = _serve(family, folder, name, prompts)
        if found[name]["outcome"] in ("refused", "hang", "crash"):
            break
    return {"layouts": found, "seconds": round(time.monotonic() - start, 1)}


def _serve(family: Family, folder: Path, name: str, prompts: list[list[int]]) -> dict[str, Any]:
    layout, port = LAYOUTS[name], free_port()
    log = folder / f"{name.replace(' ', '')}.log"

    def rank(number: int) -> Callable[[], Any]:
        return lambda: engine.serve(family, folder, layout, number, port, prompts)

    ranks = _in_processes([rank(number) for number in range(layout.ranks)], log)
    for outcome in ("refused", "crash", "hang"):
        said = [answer[outcome] for answer in ranks if outcome in answer]
        if said:
            stage = next((answer["at"] for answer in ranks if "at" in answer), "")
            return {"outcome": outcome, "why": said[0]} | ({"at": stage} if stage else {})
    if not family.referenced:
        return {"outcome": "runs"}
    answers: list[Any] = []
    asked: list[list[int]] = []
    for number in range(layout.dp_size if layout.dp_size > 1 else 1):  # tensor-parallel ranks give one answer
        asked += prompts[number :: layout.dp_size]
        answers += ranks[number * layout.tp_size]["answers"]
    judged = _in_processes([lambda: judge.verdict(family, folder, asked, answers)], folder / "judge.log")[0]
    return (
        judged if "outcome" in judged else {"outcome": "not judged", "why": judged.get("crash") or judged.get("hang")}
    )


def _prompts(family: Family) -> list[list[int]]:
    drawn = random.Random(5)
    return [[drawn.randrange(3, VOCABULARY - 12) for _ in range(length)] for length in family.prompts]


def _in_processes(works: list[Callable[[], Any]], log: Path) -> list[dict[str, Any]]:
    """What each of ``works`` returns, run at once in a forked process each: a dictionary, with ``crash`` or ``hang`` where
    one did not return."""
    children = []
    for work in works:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(work, log, writer)
        os.close(writer)
        children.append((pid, reader))
    deadline = time.monotonic() + SECONDS
    return [_collect(pid, reader, deadline) for pid, reader in children]


def _child(work: Callable[[], Any], log: Path, writer: int) -> None:
    os.setpgid(0, 0)  # what it starts ends with it
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # and it ends with this process, however that ends
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        found = work() or {}
    except BaseException as error:
        traceback.print_exc()
        found = {"crash": f"{type(error).__name__}: {error}"}
    with os.fdopen(writer, "w") as pipe:
        json.dump(found, pipe)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no teardown of what was forked


def _collect(pid: int, reader: int, deadline: float) -> dict[str, Any]:
    text = b""
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                return {"hang": f"no answer after {SECONDS:.0f} s"}
            part = os.read(reader, 1 << 16)
            if not part:
                break
            text += part
        return dict(json.loads(text)) if text else {"crash": "the process ended without an answer"}
    finally:
        os.close(reader)
        for target in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                target(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
