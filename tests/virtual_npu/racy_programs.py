# SPDX-License-Identifier: Apache-2.0
"""Small programs with one synchronisation too few, and their repaired twins; test_order.py runs all in one process.

A program is a function with the argument ``repair``: None leaves the fault in, a name repairs it. Lines marked ``# earlier``
and ``# later`` are the call sites that an error has to name. What takes two ranks is in racy_ranks.py.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch_npu

from tests.support.processes import report

from . import order_schedules
from .order_schedules import Stream

NPU = "npu:0"
(NOT_YET,) = struct.unpack("<f", b"\xab" * 4)
"""What a float32 on the host is until its asynchronous copy has been waited for."""


@dataclass(frozen=True)
class Program:
    """A racy program.

    Attributes:
        says: what the error says of the kind of fault.
        repairs: names that ``run`` takes; each makes the program right.
    """

    run: Callable[[str | None], None]
    says: str
    repairs: tuple[str, ...]


PROGRAMS: dict[str, Program] = {}


def program(says: str, *repairs: str) -> Callable[[Callable[[str | None], None]], Callable[[str | None], None]]:
    def declare(run: Callable[[str | None], None]) -> Callable[[str | None], None]:
        PROGRAMS[run.__name__] = Program(run, says, repairs)
        return run

    return declare


def order(repair: str | None, first: Stream, second: Stream) -> None:
    """Make ``second`` come after what ``first`` has to do, in one of the ways that there are."""
    match repair:
        case "wait_stream":
            second.wait_stream(first)
        case "event":
            second.wait_event(first.record_event())
        case "event synchronize":
            event = first.record_event()
            event.synchronize()
            assert event.query(), "an event that was waited for is complete"
        case "event query":
            event = first.record_event()
            while not event.query():
                pass
        case "stream synchronize":
            first.synchronize()
        case "device synchronize":
            torch.npu.synchronize()
        case "item":
            with torch.npu.stream(first):
                torch.zeros((), device=NPU).item()
        case "blocking copy":
            with torch.npu.stream(first):
                torch.zeros(2, device=NPU).cpu()


ORDERS = (
    "wait_stream",
    "event",
    "event synchronize",
    "event query",
    "stream synchronize",
    "device synchronize",
    "item",
    "blocking copy",
)


@program("reads 64 bytes that aten::fill_.Scalar writes on another stream", *ORDERS)
def read_after_write(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(16, device=NPU)
    side.wait_stream(main)
    with torch.npu.stream(side):
        x.fill_(1.0)  # earlier
    order(repair, side, main)
    x + 1  # later


@program("writes 64 bytes that aten::add.Tensor reads on another stream", *ORDERS)
def write_after_read(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(16, device=NPU)
    side.wait_stream(main)
    with torch.npu.stream(side):
        x + 1  # earlier
    order(repair, side, main)
    x.fill_(1.0)  # later


@program("writes 64 bytes that aten::fill_.Scalar writes on another stream", "wait_stream")
def write_after_write(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(16, device=NPU)
    side.wait_stream(main)
    with torch.npu.stream(side):
        x.fill_(1.0)  # earlier
    order(repair, side, main)
    x.fill_(2.0)  # later


@program("reads 64 bytes that npu::npu_swiglu writes on another stream", "wait_stream")
def an_operator_of_torch_npu(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(4, 8, device=NPU)
    side.wait_stream(main)
    with torch.npu.stream(side):
        y = torch_npu.npu_swiglu(x)  # earlier
    order(repair, side, main)
    y * 2  # later


@program(
    "reads 16 bytes that aten::fill_.Scalar writes on another stream", "other rows", "other columns", "wait_stream"
)
def overlapping_views(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(4, 8, device=NPU)
    side.wait_stream(main)
    with torch.npu.stream(side):
        x[:, :4].fill_(1.0)  # earlier
    order(repair, side, main)
    match repair:
        case "other columns":
            x[:, 4:] + 1
        case "other rows":
            x[:0] + 1
        case _:
            x[1:3] + 1  # later


@program("reads 64 bytes that aten::fill_.Scalar writes on another stream", "recorded after")
def an_event_recorded_too_early(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(16, device=NPU)
    side.wait_stream(main)
    event = side.record_event()
    with torch.npu.stream(side):
        x.fill_(1.0)  # earlier
    if repair:
        event = side.record_event()
    main.wait_event(event)
    x + 1  # later


@program("were freed and given out again", "record_stream", "wait before it is freed")
def freed_while_another_stream_uses_it(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.zeros(1000, device=NPU)
    address = x.data_ptr()
    side.wait_stream(main)
    with torch.npu.stream(side):
        x + 1  # earlier
    if repair == "record_stream":
        x.record_stream(side)
    elif repair:
        main.wait_stream(side)
    del x
    y = torch.full((1000,), 2.0, device=NPU)  # later
    assert repair == "record_stream" or y.data_ptr() == address, (
        "the allocator gave out other memory: nothing was tried"
    )


@program(
    "the pinned source of an asynchronous copy to the device was written before", "event", "synchronize", "blocking"
)
def source_overwritten(repair: str | None) -> None:
    source = torch.ones(16).pin_memory()
    target = torch.empty(16, device=NPU)
    target.copy_(source, non_blocking=repair != "blocking")  # earlier
    if repair == "event":
        torch.npu.current_stream().record_event().synchronize()
    elif repair == "synchronize":
        torch.npu.synchronize()
    source.fill_(2.0)  # later
    torch.npu.synchronize()
    assert target.tolist() == [1.0] * 16


@program(
    "the destination of an asynchronous copy to the host was read or written before", "event", "synchronize", "blocking"
)
def destination_read_early(repair: str | None) -> None:
    source = torch.ones(16, device=NPU)
    target = torch.zeros(16).pin_memory()
    target.copy_(source, non_blocking=repair != "blocking")  # earlier
    if repair == "event":
        torch.npu.current_stream().record_event().synchronize()
    elif repair == "synchronize":
        torch.npu.synchronize()
    seen = target.tolist()  # later
    assert seen == [1.0 if repair else NOT_YET] * 16
    torch.npu.synchronize()


@program("the destination of an asynchronous copy to the host was read or written before", "of the copy")
def the_wrong_event(repair: str | None) -> None:
    side = torch.npu.Stream()
    source = torch.ones(16, device=NPU)
    side.wait_stream(torch.npu.current_stream())
    target = torch.zeros(16).pin_memory()
    with torch.npu.stream(side):
        target.copy_(source, non_blocking=True)  # earlier
    (side if repair else torch.npu.current_stream()).record_event().synchronize()
    seen = target.tolist()  # later
    torch.npu.synchronize()
    assert seen == [1.0] * 16


def graph_of(x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = x * 2
    torch.npu.synchronize()
    return graph, result


@program("in the replay of graph", *ORDERS)
def replayed_while_a_replay_uses_its_memory(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    graph, _ = graph_of(torch.ones(16, device=NPU))
    with torch.npu.stream(side):
        graph.replay()  # earlier
    order(repair, side, main)
    graph.replay()  # later


@program("writes 64 bytes that aten::mul.Tensor in the replay of graph", "wait_stream")
def input_overwritten_during_a_replay(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.ones(16, device=NPU)
    graph, _ = graph_of(x)
    with torch.npu.stream(side):
        graph.replay()  # earlier
    order(repair, side, main)
    x.fill_(3.0)  # later


@program("in the replay of graph", "wait_stream")
def input_written_on_a_side_stream(repair: str | None) -> None:
    """As a mask of active tokens would be that is written beside the stream that replays."""
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x = torch.ones(16, device=NPU)
    graph, _ = graph_of(x)
    with torch.npu.stream(side):
        x.fill_(3.0)  # earlier
    order(repair, side, main)
    graph.replay()  # later


@program("reads 64 bytes that aten::fill_.Scalar writes on another stream", "wait_stream")
def two_streams_of_one_capture(repair: str | None) -> None:
    x = torch.ones(16, device=NPU)
    side = torch.npu.Stream()
    torch.npu.synchronize()
    with torch.npu.graph(torch.npu.NPUGraph()):
        main = torch.npu.current_stream()
        side.wait_stream(main)
        with torch.npu.stream(side):
            x.fill_(2.0)  # earlier
        order(repair, side, main)
        x + 1  # later
        main.wait_stream(side)


def doubled_in_a_graph(x: torch.Tensor, out: torch.Tensor) -> tuple[Any, Any]:
    """A graph of one task group, which writes ``2 * x`` into ``out``, and the group's handle."""
    graph = torch.npu.NPUGraph()
    torch.npu.synchronize()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch.mul(x, 2.0, out=out)
        handle = torch.npu.graph_task_group_end(stream)
    torch.npu.synchronize()
    return graph, handle


@program("the update of a task group of graph", "wait_stream", "stream synchronize")
def updated_during_a_replay(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x, out = torch.ones(16, device=NPU), torch.zeros(16, device=NPU)
    graph, handle = doubled_in_a_graph(x, out)
    graph.replay()  # earlier
    order(repair, main, side)
    with torch.npu.stream(side):
        torch.npu.graph_task_update_begin(side, handle)
        torch.mul(x, 3.0, out=out)  # later
        torch.npu.graph_task_update_end(side)


@program("that the update of a task group of graph", "wait_stream")
def replayed_during_an_update(repair: str | None) -> None:
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    x, out = torch.ones(16, device=NPU), torch.zeros(16, device=NPU)
    graph, handle = doubled_in_a_graph(x, out)
    with torch.npu.stream(side):
        torch.npu.graph_task_update_begin(side, handle)
        torch.mul(x, 3.0, out=out)  # earlier
        torch.npu.graph_task_update_end(side)
    order(repair, side, main)
    graph.replay()  # later
    torch.npu.synchronize()
    assert out.tolist() == [3.0] * 16


@program("the update of a task group of graph", "wait_stream")
def two_updates_on_two_streams(repair: str | None) -> None:
    first, second = torch.npu.Stream(), torch.npu.Stream()
    x, out = torch.ones(16, device=NPU), torch.zeros(16, device=NPU)
    _graph, handle = doubled_in_a_graph(x, out)
    with torch.npu.stream(first):
        torch.npu.graph_task_update_begin(first, handle)
        torch.mul(x, 3.0, out=out)  # earlier
        torch.npu.graph_task_update_end(first)
    order(repair, first, second)
    with torch.npu.stream(second):
        torch.npu.graph_task_update_begin(second, handle)
        torch.mul(x, 4.0, out=out)  # later
        torch.npu.graph_task_update_end(second)


@cache
def one_rank() -> Any:
    """The backend of a world of one rank: its collectives have streams of their own like any other's."""
    dist.init_process_group("hccl", rank=0, world_size=1, store=dist.HashStore())
    assert dist.group.WORLD is not None
    return dist.group.WORLD._get_backend(torch.device(NPU))


@program("reads 64 bytes that hccl ALLREDUCE writes on another stream", "wait", "completed")
def result_read_before_the_wait(repair: str | None) -> None:
    x = torch.ones(16, device=NPU)
    one_rank()
    work = one_rank().allreduce([x], dist.AllreduceOptions())  # earlier
    if repair == "wait":
        work.wait()
    elif repair:
        while not work.is_completed():
            pass
    x + 1  # later
    work.wait()


@program("writes 64 bytes that hccl _ALLGATHER_BASE reads on another stream", "wait")
def input_overwritten_before_the_wait(repair: str | None) -> None:
    x, gathered = torch.ones(16, device=NPU), torch.zeros(16, device=NPU)
    one_rank()
    work = one_rank()._allgather_base(gathered, x)  # earlier
    if repair:
        work.wait()
    x.fill_(2.0)  # later
    work.wait()


@program("reads 64 bytes that hccl ALLREDUCE writes on another stream", "wait on the reader's stream")
def waited_for_on_another_stream(repair: str | None) -> None:
    side = torch.npu.Stream()
    x = torch.ones(16, device=NPU)
    one_rank()
    work = one_rank().allreduce([x], dist.AllreduceOptions())  # earlier
    if repair:
        work.wait()
    else:
        with torch.npu.stream(side):
            work.wait()
    x + 1  # later
    work.wait()


@program("reads 64 bytes that hccl ALLREDUCE writes on another stream", "freed instead")
def freed_before_the_wait(repair: str | None) -> None:
    """The backend keeps what a collective uses from being given out again, as torch_npu's does."""
    x = torch.ones(16, device=NPU)
    one_rank()
    work = one_rank().allreduce([x], dist.AllreduceOptions())  # earlier
    if repair:
        address = x.data_ptr()
        del x
        assert torch.zeros(16, device=NPU).data_ptr() != address
    else:
        x + 1  # later
    work.wait()


def warnings_of_a_copy(pinned: bool) -> list[str]:
    """What is said of two asynchronous copies to the host, which are silent if its memory is pinned."""
    source, target = torch.ones(16, device=NPU), torch.zeros(16, pin_memory=pinned)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            target.copy_(source, non_blocking=True)  # copied
            torch.npu.synchronize()
    assert target.tolist() == [1.0] * 16
    return [str(warning.message) for warning in seen]


def outcome(program: Program, repair: str | None) -> str | None:
    """The error that the program ends with, None if it ends without one."""
    try:
        program.run(repair)
        torch.npu.synchronize()
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(RuntimeError):
            torch.npu.synchronize()
    return None


def outcomes() -> dict[str, dict[str, str | None]]:
    """By program and repair ("" for none), how each ends."""
    return {
        name: {repair or "": outcome(program, repair) for repair in (None, *program.repairs)}
        for name, program in PROGRAMS.items()
    }


if __name__ == "__main__":
    report(
        {
            "copies": {memory: warnings_of_a_copy(memory == "pinned") for memory in ("pinned", "pageable")},
            "programs": outcomes(),
            "schedules": order_schedules.run(int(sys.argv[1])),
        }
    )
