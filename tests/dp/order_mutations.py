# SPDX-License-Identifier: Apache-2.0
"""Script: the device transport with one synchronisation taken away at a time, where order is checked; prints how each ends.

    python -m tests.dp.order_mutations       (under ``virtual-npu --check-order``)

One rank is enough: its all-reduce has a stream of its own like any other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_npu  # noqa: F401  (registers the npu device and the hccl backend)

from tests.support.processes import report
from vllm_ascend_patch.core.dp import transport
from vllm_ascend_patch.core.dp.transport import DeviceTransport

DEVICE = torch.device("npu", 0)
FIELDS, STEPS = 4, 4


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as scope:
        scope.setattr(owner, name, value)
        yield


class _Done:
    """In place of a work: waiting for it orders nothing."""

    def wait(self) -> None: ...


class _Unordered:
    """In place of the group: its all-reduces are never waited for on the stream."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def allreduce(self, tensors: list[torch.Tensor], options: Any) -> _Done:
        self.group.allreduce(tensors, options)
        return _Done()


class _OneSlot(DeviceTransport):
    """A single buffer where there are two."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, 0 if name == "_turn" else value)


@contextmanager
def nothing() -> Iterator[type[DeviceTransport]]:
    yield DeviceTransport


@contextmanager
def no_wait_for_the_event() -> Iterator[type[DeviceTransport]]:
    with replaced(transport, "wait_until", lambda done, check: None):
        yield DeviceTransport


@contextmanager
def no_wait_for_the_work() -> Iterator[type[DeviceTransport]]:
    class Unordered(DeviceTransport):
        def __init__(self, group: Any, *arguments: Any) -> None:
            super().__init__(_Unordered(group), *arguments)  # type: ignore[arg-type]

    yield Unordered


@contextmanager
def one_slot() -> Iterator[type[DeviceTransport]]:
    yield _OneSlot


@contextmanager
def no_wait_for_the_zeros() -> Iterator[type[DeviceTransport]]:
    with replaced(torch.npu.Stream, "wait_stream", lambda self, other: None):
        yield DeviceTransport


MUTATIONS = (nothing, no_wait_for_the_event, no_wait_for_the_work, one_slot, no_wait_for_the_zeros)


def steps(kind: type[DeviceTransport]) -> None:
    """Two steps are under way at any time, as the transport allows."""
    torch.npu.synchronize()
    assert dist.group.WORLD is not None
    made = kind(dist.group.WORLD, 0, 1, FIELDS, DEVICE)
    under_way = []
    for step in range(STEPS):
        made.column()[:] = range(step, step + FIELDS)
        under_way.append((step, made.post()))
        if len(under_way) == 2:
            number, handle = under_way.pop(0)
            found = made.wait(handle, lambda waited: None)
            if kind is DeviceTransport:
                assert found == [[number + field] for field in range(FIELDS)], (number, found)
    torch.npu.synchronize()


def end_of(mutation: Any) -> str:
    try:
        with mutation() as kind:
            steps(kind)
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    dist.init_process_group("hccl", rank=0, world_size=1, store=dist.HashStore())
    ends = {}
    for mutation in MUTATIONS:
        ends[mutation.__name__] = end_of(mutation)
        try:
            torch.npu.synchronize()
        except RuntimeError as late:  # found when the host waited
            ends[mutation.__name__] += str(late)
    report(ends)
