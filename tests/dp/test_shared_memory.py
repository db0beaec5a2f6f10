# SPDX-License-Identifier: Apache-2.0
"""The transport through shared memory: whatever the timing, every rank gets every rank's numbers of this exchange, and never
accepts a slot that is not complete."""

from __future__ import annotations

import mmap
import random
import time

import numpy as np
import pytest

from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.dp.shared_memory import SharedMemoryTransport

FIELDS = 16
LAST = (1 << 32) - 1


def _memory(size: int, fields: int = FIELDS) -> mmap.mmap:
    return mmap.mmap(-1, SharedMemoryTransport.bytes_needed(size, fields))  # forked processes share it


def _together(size: int, sequence: int = 1, fields: int = FIELDS) -> list[SharedMemoryTransport]:
    """All ranks' ends in this process."""
    memory = _memory(size, fields)
    transports = [SharedMemoryTransport(memory, rank, size, fields) for rank in range(size)]
    for transport in transports:
        transport._sequence = sequence
    return transports


def _at_once(waited: float) -> None:
    raise TimeoutError


def _numbers(seed: int, rank: int, step: int, fields: int) -> list[int]:
    rng = random.Random(f"{seed} {rank} {step}")
    return [rng.choice([0, 1, -1, 2**31 - 1, -(2**31), rng.randint(-(2**31), 2**31 - 1)]) for _ in range(fields)]


def _exchange_many(rank: int, size: int, memory: mmap.mmap, fields: int, first: int, steps: int, seed: int) -> int:
    transport = SharedMemoryTransport(memory, rank, size, fields)
    transport._sequence = first
    slow = random.Random(seed).randrange(size)
    rng = random.Random(f"{seed} {rank}")

    def check(waited: float) -> None:
        assert waited < 30, "a hang"

    for step in range(steps):
        transport.column()[:] = _numbers(seed, rank, step, fields)
        handle = transport.post()
        pause = rng.random()
        if rank == slow and pause < 0.1:
            time.sleep(pause / 50)
        rows = transport.wait(handle, check)
        expected = [_numbers(seed, other, step, fields) for other in range(size)]
        assert [list(column) for column in zip(*rows, strict=True)] == expected, f"seed {seed}, step {step}"
    return steps


@pytest.mark.parametrize(
    ("size", "fields", "first"),
    [(2, 16, 1), (3, 5, LAST - 150), (4, 16, (1 << 31) - 150), (4, 9, LAST - 151)],
    ids=["2 ranks", "3 ranks, wrapping", "4 ranks, past the sign", "4 ranks, wrapping in the other slot"],
)
def test_random_matrices_arrive_whatever_the_timing(size: int, fields: int, first: int) -> None:
    for seed in range(3):
        memory = _memory(size, fields)
        assert values_of(run_ranks(_exchange_many, size, memory, fields, first, 400, seed)) == [400] * size


def test_one_missing_word_is_enough_to_wait_on() -> None:
    mine, other = _together(2)
    other.column()[:] = 7
    other.post()
    row = np.array(other._own_rows[0])
    for field in range(FIELDS):
        handle = mine.post()
        assert mine.wait(handle, _at_once)[0] == [0, 7]
        mine._sequence, mine._turn = 1, 0
        other._own_rows[0][field] = 5  # as if this store had not become visible yet: no number, some value
        mine._awaited, mine._expected[0] = mine._slots[0], 1
        assert not mine._complete(), f"field {field} of rank 1 was never written"
        other._own_rows[0][:] = row


@pytest.mark.parametrize("field", [0, 7, FIELDS - 1])
@pytest.mark.parametrize("sequence", [1, 3, LAST, (1 << 31)])
def test_a_row_of_mixed_exchanges_is_not_accepted(field: int, sequence: int) -> None:
    """Two exchanges ago the same slot was complete; of the new row all but one word have arrived."""
    ends = _together(2, sequence)
    for value in (1, 2):
        for end in ends:
            end.column()[:] = value
        handles = [end.post() for end in ends]
        for end, handle in zip(ends, handles, strict=True):
            assert end.wait(handle, _at_once) == [[value, value]] * FIELDS
    mine, other = ends
    slot = other._slots[other._turn]
    stale = slot[1, field].copy()
    for end in ends:
        end.column()[:] = 3
    handle = mine.post()
    other.post()
    fresh = slot[1, field].copy()
    slot[1, field] = stale
    with pytest.raises(TimeoutError):
        mine.wait(handle, _at_once)
    slot[1, field] = fresh
    assert mine.wait(handle, _at_once) == [[3, 3]] * FIELDS


def test_memory_that_nobody_wrote_is_never_valid() -> None:
    (alone,) = _together(1, LAST)
    untouched = np.zeros_like(alone._copy)
    seen = []
    for _ in range(4):
        handle = alone.post()
        seen.append(handle[1])
        alone.wait(handle, _at_once)
        alone._awaited = untouched
        assert not alone._complete()
    assert seen == [LAST, 1, 2, 3], "the number after the last one is not 0"
    assert [slot for slot, _ in (alone.post(), alone.post())] == [0, 1], "slots go on in turn"


def test_rows_of_different_ranks_share_no_cache_line() -> None:
    for fields in (1, 8, 9, 16):
        ends = _together(3, fields=fields)
        addresses = [row.ctypes.data for end in ends for row in end._own_rows]
        assert all(address % 64 == 0 for address in addresses)
        assert len(set(addresses)) == 6
        assert max(addresses) + ends[0]._own_rows[0].nbytes - min(addresses) == ends[0].bytes_needed(3, fields)


def test_a_step_takes_the_same_buffers_each_time() -> None:
    (alone,) = _together(1)
    addresses = set()
    for _ in range(6):
        addresses.add(alone.column().ctypes.data)
        alone.wait(alone.post(), _at_once)
        addresses.add(alone._copy.ctypes.data)
    assert len(addresses) == 2
