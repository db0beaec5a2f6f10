# SPDX-License-Identifier: Apache-2.0
"""Random schedules over three streams with events, on the checker, against an oracle that searches for paths.

A schedule is a list of steps; the memory is one buffer, of which steps touch overlapping views. What programs people write
wrongly is in racy_programs.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

NPU = "npu:0"
Stream = Any  # torch.npu.Stream, which only torch_npu defines
ROWS, COLUMNS = 4, 6
STREAMS = EVENTS = 3

VIEWS = (
    (slice(0, 4), slice(0, 6)),
    (slice(0, 2), slice(0, 6)),
    (slice(1, 3), slice(0, 6)),
    (slice(3, 4), slice(2, 3)),
    (slice(0, 4), slice(0, 3)),
    (slice(0, 4), slice(3, 6)),
    (slice(0, 4, 2), slice(1, 6, 2)),
)


@dataclass(frozen=True)
class Step:
    """One thing that the host does: ``what`` is read, write, update, copy, record, wait, or one of the host's waits."""

    what: str
    stream: int = 0
    event: int = 0
    view: int = 0
    target: int = 0


def elements(view: int) -> frozenset[int]:
    rows, columns = VIEWS[view]
    return frozenset(r * COLUMNS + c for r in range(ROWS)[rows] for c in range(COLUMNS)[columns])


_streams, _events, _views = st.integers(0, STREAMS - 1), st.integers(0, EVENTS - 1), st.integers(0, len(VIEWS) - 1)
_apart = st.sampled_from([(4, 5), (5, 4)])  # of one shape; torch refuses to copy between views that overlap

STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.sampled_from(["read", "write", "update"]), stream=_streams, view=_views),
        st.builds(lambda s, v: Step("copy", s, view=v[0], target=v[1]), _streams, _apart),
        st.builds(Step, st.sampled_from(["record", "wait"]), stream=_streams, event=_events),
        st.builds(Step, st.sampled_from(["synchronize event", "query event"]), event=_events),
        st.builds(Step, st.just("synchronize stream"), stream=_streams),
        st.just(Step("synchronize device")),
    ),
    min_size=2,
    max_size=14,
)


@dataclass
class Oracle:
    """Everything that happened as nodes of a graph, and what must come before what as its edges."""

    edges: dict[int, list[int]] = field(default_factory=dict)
    touched: list[tuple[int, frozenset[int], frozenset[int]]] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)
    recorded: dict[int, int] = field(default_factory=dict)
    host: int | None = None

    def node(self, *after: int | None) -> int:
        number = len(self.edges)
        self.edges[number] = [earlier for earlier in after if earlier is not None]
        return number

    def comes_before(self, earlier: int, later: int) -> bool:
        waiting, seen = [later], set()
        while waiting:
            node = waiting.pop()
            if node == earlier:
                return True
            if node not in seen:
                seen.add(node)
                waiting += self.edges[node]
        return False

    def races(self, step: Step) -> bool:
        """Take the step; whether it touches memory that something else touches, neither known to come first."""
        on = step.stream
        if step.what in ("read", "write", "update", "copy"):
            reads = frozenset() if step.what == "write" else elements(step.view)
            writes = elements(step.target if step.what == "copy" else step.view)
            writes = frozenset() if step.what == "read" else writes
            node = self.last[on] = self.node(self.last.get(on), self.host)
            race = any(
                (writes & (r | w) or reads & w) and not self.comes_before(earlier, node)
                for earlier, r, w in self.touched
            )
            self.touched.append((node, reads, writes))
            return race
        if step.what == "record":
            self.recorded[step.event] = self.last[on] = self.node(self.last.get(on))
        elif step.what == "wait":
            self.last[on] = self.node(self.last.get(on), self.recorded.get(step.event))
        elif step.what == "synchronize stream":
            self.host = self.node(self.host, self.last.get(on))
        elif step.what == "synchronize device":
            self.host = self.node(self.host, *self.last.values())
        else:
            self.host = self.node(self.host, self.recorded.get(step.event))
        return False


class Device:
    """The same steps on the virtual NPU."""

    streams: tuple[Stream, ...] = ()

    def __init__(self) -> None:
        if not Device.streams:
            Device.streams = tuple(torch.npu.Stream() for _ in range(STREAMS))
        torch.npu.synchronize()  # with what the schedule before this one left
        self.buffer = torch.zeros(ROWS, COLUMNS, device=NPU)
        self.views = [self.buffer[view] for view in VIEWS]
        self.events = [torch.npu.Event() for _ in range(EVENTS)]
        torch.npu.synchronize()

    def take(self, step: Step) -> None:
        stream, event = self.streams[step.stream], self.events[step.event]
        if step.what == "record":
            event.record(stream)
        elif step.what == "wait":
            event.wait(stream)
        elif step.what == "synchronize event":
            event.synchronize()
        elif step.what == "query event":
            while not event.query():
                pass
        elif step.what == "synchronize stream":
            stream.synchronize()
        elif step.what == "synchronize device":
            torch.npu.synchronize()
        else:
            with torch.npu.stream(stream):
                self.compute(step)

    def compute(self, step: Step) -> None:
        view = self.views[step.view]
        match step.what:
            case "read":
                view + 1
            case "write":
                view.fill_(1.0)
            case "update":
                view.add_(1.0)
            case "copy":
                self.views[step.target].copy_(view)


def first_race(steps: list[Step]) -> int | None:
    oracle = Oracle()
    return next((i for i, step in enumerate(steps) if oracle.races(step)), None)


def first_error(steps: list[Step]) -> int | None:
    device = Device()
    for i, step in enumerate(steps):
        try:
            device.take(step)
        except RuntimeError as error:
            if "virtual-npu --check-order" not in str(error):
                raise
            return i
    return None


def run(number: int) -> dict[str, int]:
    """Try ``number`` schedules; how many had a race. An AssertionError shows the smallest on which the two differ."""
    counts = {"schedules": 0, "racy": 0}

    @seed(20261129)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    def agree(steps: list[Step]) -> None:
        expected = first_race(steps)
        counts["schedules"] += 1
        counts["racy"] += expected is not None
        assert first_error(steps) == expected

    agree()
    return counts
