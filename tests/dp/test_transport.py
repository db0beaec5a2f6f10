# SPDX-License-Identifier: Apache-2.0
"""The device transport on real torch_npu: what a step runs on the device, and on which stream."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.processes import result_of, under_virtual_npu

from .device_transport import LATE, STEPS

SIZE = 2


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    check = {"VIRTUAL_NPU_CHECK_ORDER": "line"}
    result = under_virtual_npu("-m", "tests.dp.device_transport", str(SIZE), devices=SIZE, environment=check)
    return result_of(result)


def test_a_step_is_one_all_reduce_between_two_copies_and_nothing_of_it_runs_on_the_main_stream(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        for step in rank["steps"]:
            assert [name for name, *_ in step] == ["copy_", "allreduce_", "copy_"], "no allocation, no read"
            assert all(on_side_stream for _, on_side_stream, *_ in step)
            devices = [devices for _, _, devices, _ in step]
            assert devices == [["npu", "cpu"], ["npu"], ["cpu", "npu"]]


def test_buffers_are_pinned_and_used_in_turn(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert all(rank["pinned"])
        addresses = [[pointers for *_, pointers in step] for step in rank["steps"]]
        assert addresses[0] != addresses[1]
        assert addresses[0::2] == [addresses[0]] * (STEPS // 2)
        assert addresses[1::2] == [addresses[1]] * (STEPS // 2)


def test_every_rank_gets_every_ranks_counts(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["tokens"] == [[10 * step + other + 1 for other in range(SIZE)] for step in range(STEPS)]


def test_posting_does_not_wait_for_a_late_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["post seconds"] < LATE / 2


def test_auto_measures_all_three_and_every_rank_takes_the_same(ranks: list[dict[str, Any]]) -> None:
    chosen = ranks[0]["chosen"]
    assert chosen in ("cpu", "device", "shared")
    assert all(rank["chosen"] == chosen for rank in ranks)
    log = "\n".join(ranks[0]["log"])
    measured = re.search(rf"DP metadata transport: {chosen} .* (cpu \d+ us, device \d+ us, shared \d+ us)", log)
    assert measured, log
    figures = {name: int(figure) for name, figure in re.findall(r"(\w+) (\d+) us", measured[1])}
    assert figures[chosen] == min(figures.values()), figures
