# SPDX-License-Identifier: Apache-2.0
"""Choosing the transport by measuring it, once, at start-up, with a result that all ranks share.

Measures only; the transports themselves are in ``transport.py``. What is compared is what a step pays: the host time of
``post`` plus the host time of ``wait`` after a stretch of other host work between them.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence

import numpy as np

from .transport import Check, DeviceTransport, Transport

logger = logging.getLogger(__name__)

ROUNDS = 40
WARM_UP_ROUNDS = 10
HOST_WORK_SECONDS = 300e-6
"""Host work between post and wait: a small batch's input preparation (about 0.3 ms in stock vLLM on a server CPU)."""

_LATE_SECONDS = 0.05


def detect_blocking_wait(transport: DeviceTransport, check: Check) -> None:
    """Find out whether the backend's ``Work.wait`` blocks the host, and set ``transport.host_blocking_wait``.

    Rank 0 posts late; elsewhere a ``post`` that took about as long as rank 0 was late has waited for it. All ranks of the
    group call this together. Rank 0 takes the others' finding.
    """
    for late in (False, True):  # the first round only opens connections
        exchange(transport, [0] * transport.size, check)
        if late and transport.rank == 0:
            time.sleep(_LATE_SECONDS)
        start = time.perf_counter()
        transport.column()
        handle = transport.post()
        took = time.perf_counter() - start
        transport.wait(handle, check)
    blocked = took > _LATE_SECONDS / 2
    found = exchange(transport, [int(blocked)] * transport.size, check)
    transport.host_blocking_wait = any(found[0])


def measure(transport: Transport, check: Check) -> float:
    """Median microseconds of host time that one step pays with this transport."""
    samples = []
    for round_number in range(WARM_UP_ROUNDS + ROUNDS):
        begin = time.perf_counter()
        transport.column()
        handle = transport.post()
        posted = time.perf_counter()
        until = posted + HOST_WORK_SECONDS
        while time.perf_counter() < until:
            pass
        resumed = time.perf_counter()
        transport.wait(handle, check)
        done = time.perf_counter()
        if round_number >= WARM_UP_ROUNDS:
            samples.append(posted - begin + done - resumed)
    return statistics.median(samples) * 1e6


def choose(transports: Sequence[Transport], check: Check) -> Transport:
    """The transport whose slowest rank is fastest. All ranks call this together and get the same answer.

    Args:
        transports: in the same order on every rank; the first one also carries the figures.
    """
    own = [measure(t, check) for t in transports]
    carrier = transports[0]
    per_transport = exchange(carrier, [int(min(value, 2e9)) for value in own], check)
    worst = [max(per_transport[index]) for index in range(len(transports))]
    best = min(range(len(transports)), key=lambda index: worst[index])
    if carrier.rank == 0:
        figures = ", ".join(f"{t.name} {w} us" for t, w in zip(transports, worst, strict=True))
        logger.info(
            "DP metadata transport: %s (measured host time per step on the slowest rank, %d rounds: %s)",
            transports[best].name,
            ROUNDS,
            figures,
        )
    return transports[best]


def exchange(transport: Transport, values: Sequence[int], check: Check) -> list[list[int]]:
    """Send up to ``fields`` ints and get every rank's: ``[fields][dp_size]``. Blocking."""
    column = transport.column()
    column[:] = 0
    count = min(len(values), len(column))
    column[:count] = np.asarray(values[:count], dtype=np.int32)
    return transport.wait(transport.post(), check)
