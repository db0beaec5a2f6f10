# SPDX-License-Identifier: Apache-2.0
"""What a thread does is told from its stack: the method that it was called for, or that nobody has called it."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from vllm_ascend_patch.core.dp.activity import Activity, Landmarks, activity_of
from vllm_ascend_patch.seams.step.landmarks import WORKER

LANDMARKS = Landmarks(calls=frozenset({"main_loop", "call_method"}), waits=frozenset({"next_call"}))


class Gate:
    """Holds a thread where a test wants to look at it."""

    def __init__(self) -> None:
        self.reached, self.leave = threading.Event(), threading.Event()

    def hold(self) -> None:
        self.reached.set()
        self.leave.wait(20)


def main_loop(step: Callable[[Gate], None], gate: Gate) -> None:
    step(gate)


def call_method(gate: Gate) -> None:
    Model().reload(gate)


def next_call(gate: Gate) -> None:
    gate.hold()


class Model:
    def reload(self, gate: Gate) -> None:
        next_call(gate)  # e.g. a broadcast among the ranks of one engine: still the method's business


@contextmanager
def held(*call: object) -> Iterator[int]:
    gate = Gate()
    function, *arguments = call
    thread = threading.Thread(target=function, args=(*arguments, gate))  # type: ignore[arg-type]
    thread.start()
    try:
        assert gate.reached.wait(20)
        assert thread.ident
        yield thread.ident
    finally:
        gate.leave.set()
        thread.join()


def test_a_thread_that_was_called_is_named_by_the_method_and_by_where_it_is() -> None:
    with held(main_loop, call_method) as thread:
        activity = activity_of(thread, LANDMARKS)
    assert activity.text.startswith("runs Model.reload, now in ")
    assert not activity.idle


def test_a_thread_that_nobody_has_called_is_idle() -> None:
    with held(main_loop, next_call) as thread:
        assert activity_of(thread, LANDMARKS) == Activity("waits in next_call", idle=True)


def test_a_thread_outside_of_the_framework_is_busy_with_what_it_runs() -> None:
    with held(next_call) as thread:
        activity = activity_of(thread, LANDMARKS)
    assert activity.text.startswith("runs ")
    assert not activity.idle


def test_nothing_is_said_of_a_thread_that_has_ended() -> None:
    with held(next_call) as thread:
        pass
    assert activity_of(thread, LANDMARKS) == Activity()


def methods_of(path: Path) -> set[tuple[str, str]]:
    classes = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))
    return {(node.name, member.name) for node in classes for member in node.body if isinstance(member, ast.FunctionDef)}


def test_the_installed_vllm_has_the_functions_that_tell_a_busy_worker_from_an_idle_one() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    files = (
        "v1/executor/multiproc_executor.py",
        "v1/engine/core.py",
        "distributed/device_communicators/shm_broadcast.py",
    )
    methods = set().union(*(methods_of(folder / file) for file in files))
    calls = {("WorkerProc", "worker_busy_loop"), ("DPEngineCoreProc", "run_busy_loop")}
    waits = {
        ("MessageQueue", "dequeue"),
        ("EngineCoreProc", "_process_input_queue"),
        ("DPEngineCoreProc", "_has_global_unfinished_reqs"),
    }
    assert calls | waits <= methods
    assert {name for _, name in calls} <= WORKER.calls
    assert {name for _, name in waits} == WORKER.waits
