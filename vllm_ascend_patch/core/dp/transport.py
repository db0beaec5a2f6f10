# SPDX-License-Identifier: Apache-2.0
"""How a step matrix travels: over gloo from host memory, or over the device's collective library on a side stream. (Through
memory that the ranks share: ``shared_memory.py``.)

A transport knows buffers, streams and work handles; it knows nothing of what the rows mean. Each has two slots that are
allocated once and used in turn, so the result of one step may be read while the next one is under way. ``post`` never
blocks on another rank (unless the backend itself does, see ``DeviceTransport``); ``wait`` blocks in short slices and calls
``check`` between them, which raises when a rank is missing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

Check = Callable[[float], None]

_SLICE = timedelta(milliseconds=250)


class Transport(ABC):
    """Puts every rank's column together into one ``[fields, dp_size]`` int32 matrix, on every rank.

    Args:
        rank: this rank in the data-parallel group.
        size: ranks in the group.
        fields: rows of the matrix.
    """

    name: str

    def __init__(self, rank: int, size: int, fields: int) -> None:
        self.rank, self.size, self.fields = rank, size, fields

    @property
    def payload_bytes(self) -> int:
        return 4 * self.fields * self.size

    def describe(self) -> str:
        """What a step costs, for the log."""
        return f"one {self.name} all-reduce of {self.payload_bytes} bytes"

    @abstractmethod
    def column(self) -> np.ndarray:
        """This rank's column of the next slot, ``[fields]`` int32, to be filled before ``post``."""

    @abstractmethod
    def post(self) -> Any:
        """Send the slot that ``column`` returned. Returns a handle for ``wait``."""

    @abstractmethod
    def wait(self, handle: Any, check: Check) -> list[list[int]]:
        """The reduced matrix as nested lists, ``[fields][dp_size]``.

        Args:
            handle: what ``post`` returned.
            check: called with the seconds waited, at least four times a second; raises to give up.
        """


class _AllReduce(Transport):
    """Sums the matrix, in which the other ranks' columns are zero, over a process group.

    Args:
        group: a process group of its own: a side-stream or asynchronous collective must never interleave with others.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int, fields: int) -> None:
        super().__init__(rank, size, fields)
        self.group = group
        self._turn = 0
        self._options = dist.AllreduceOptions()
        self._options.reduceOp = dist.ReduceOp(dist.ReduceOp.SUM)


class CpuTransport(_AllReduce):
    """Asynchronous gloo all-reduce of preallocated host memory."""

    name = "cpu"

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int, fields: int) -> None:
        super().__init__(group, rank, size, fields)
        self._tensors = [torch.zeros(fields, size, dtype=torch.int32) for _ in range(2)]
        self._arrays = [t.numpy() for t in self._tensors]

    def column(self) -> np.ndarray:
        array = self._arrays[self._turn]
        array.fill(0)
        return array[:, self.rank]

    def post(self) -> Any:
        slot = self._turn
        self._turn ^= 1
        # The group's own method: `dist.all_reduce` adds tens of microseconds of argument checks per call.
        return slot, self.group.allreduce([self._tensors[slot]], self._options)

    def wait(self, handle: Any, check: Check) -> list[list[int]]:
        slot, work = handle
        wait_for_work(work, check)
        return self._arrays[slot].tolist()


class DeviceTransport(_AllReduce):
    """All-reduce on the device group, on a stream of its own.

    The main stream never waits for it and is never waited for: input and result are staged through pinned host memory on
    the side stream, and the host looks at one event. A collective on the current stream would queue behind the forward that
    asynchronous scheduling has already launched.

    Some backends block the host in ``Work.wait`` (HCCL with HCCL_BLOCKING_WAIT=1, or one that runs on the host).
    ``calibrate``
    finds out; the copy back is then left to ``wait``, so that ``post`` stays free of other ranks.

    Args:
        device: the device the group's tensors live on.
    """

    name = "device"

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int, fields: int, device: torch.device) -> None:
        super().__init__(group, rank, size, fields)
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device=device)
        pin = device.type != "cpu"
        self._host_in = [torch.zeros(fields, size, dtype=torch.int32, pin_memory=pin) for _ in range(2)]
        self._host_out = [torch.zeros(fields, size, dtype=torch.int32, pin_memory=pin) for _ in range(2)]
        self._device = [torch.zeros(fields, size, dtype=torch.int32, device=device) for _ in range(2)]
        self._stream.wait_stream(self._module.current_stream(device))  # that has the zeros yet to write
        self._events = [self._module.Event() for _ in range(2)]
        self._in_arrays = [t.numpy() for t in self._host_in]
        self._out_arrays = [t.numpy() for t in self._host_out]
        self.host_blocking_wait = False

    def column(self) -> np.ndarray:
        return self._in_arrays[self._turn][:, self.rank]  # the other columns were zeroed once and are never written

    def post(self) -> Any:
        slot = self._turn
        self._turn ^= 1
        with self._module.stream(self._stream):
            self._device[slot].copy_(self._host_in[slot], non_blocking=True)
            work = self.group.allreduce([self._device[slot]], self._options)
            if not self.host_blocking_wait:
                work.wait()  # orders the side stream after the collective, does not block the host
                self._copy_back(slot)
        return slot, work

    def wait(self, handle: Any, check: Check) -> list[list[int]]:
        slot, work = handle
        if self.host_blocking_wait:
            wait_for_completion(work, check)
            with self._module.stream(self._stream):
                work.wait()
                self._copy_back(slot)
        event = self._events[slot]
        wait_until(event.query, check)
        return self._out_arrays[slot].tolist()

    def _copy_back(self, slot: int) -> None:
        self._host_out[slot].copy_(self._device[slot], non_blocking=True)
        self._events[slot].record(self._stream)


def wait_for_work(work: Any, check: Check) -> None:
    """Wait for a gloo work in slices. A slice that runs out leaves the operation under way and is waited for again."""
    if work.is_completed():
        work.wait()
        return
    start = time.monotonic()
    while True:
        try:
            work.wait(_SLICE)
            return
        except RuntimeError:
            if work.is_completed():  # not the slice that ran out: the operation failed, e.g. a peer's connection closed
                raise
        check(time.monotonic() - start)


def wait_for_completion(work: Any, check: Check) -> None:
    """Wait until a work reports completion without entering its blocking ``wait``."""
    wait_until(work.is_completed, check)


def wait_until(done: Callable[[], bool], check: Check) -> None:
    """Poll: at full speed for 200 microseconds (a balanced step is done by then), then in sleeps that grow to 250
    microseconds, which is also about what a late rank is noticed late."""
    start = time.monotonic()
    pause = 20e-6
    next_check = start + 0.25
    while not done():
        now = time.monotonic()
        if now - start < 200e-6:
            continue
        if now >= next_check:
            check(now - start)
            next_check = now + 0.25
        time.sleep(pause)
        pause = min(pause * 1.5, 250e-6)
