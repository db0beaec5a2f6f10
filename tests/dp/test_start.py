# SPDX-License-Identifier: Apache-2.0
"""The start of the step sync from vLLM's own configuration: ranks that were started alike come up on the device's group, a
rank that was not is named by all of them."""

from __future__ import annotations

import pytest

from tests.support.processes import result_of, under_virtual_npu

DIFFERENCES = {
    "a variable": "VLLM_ASCEND_PATCH_MOE_COMM: 'allgather' instead of 'auto'",
    "an argument": "max sequences: '5' instead of '8'",  # and the graph sizes that follow from it
    "the time limit": "timeout: '7 s' instead of '60 s'",
    "the transport": "VLLM_ASCEND_PATCH_DP_SYNC: 'cpu' instead of 'device'",  # which makes one group fewer
    "load balancing": 'expert load balancing: "EPLBConfig(',  # for which vLLM makes one group more
    "the hosts": "hosts: '1' instead of '2'",
    "the communication window": "HCCL_BUFFSIZE: '512' instead of 'None'",
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[str, float]]]:
    environment = {"VLLM_ASCEND_PATCH_DP_SYNC": "device"}
    result = under_virtual_npu("-m", "tests.dp.start_ranks", devices=2, seconds=280, environment=environment)
    return result_of(result)


def test_ranks_that_were_started_alike_come_up(found: dict[str, list[tuple[str, float]]]) -> None:
    assert [transport for transport, _ in found["nothing"]] == ["device", "device"]


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_rank_names_the_one_that_differs_and_how_within_seconds(
    difference: str, found: dict[str, list[tuple[str, float]]]
) -> None:
    for error, seconds in found[difference]:
        assert seconds < 10
        assert error.startswith("FingerprintMismatchError: data-parallel ranks were started differently")
        assert "; rank" not in error.partition(": rank 1: ")[2]
        assert DIFFERENCES[difference] in error.partition(": rank 1: ")[2]
