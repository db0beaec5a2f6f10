# SPDX-License-Identifier: Apache-2.0
"""The device transport's order: silent under the virtual NPU's check, caught with any synchronisation taken away."""

from __future__ import annotations

import pytest

from tests.support.processes import result_of, under_virtual_npu

# mutation, what the check says
EXPECTED = {
    "no_wait_for_the_event": "the destination of an asynchronous copy to the host was read or written before",
    "no_wait_for_the_work": "aten::copy_ reads 16 bytes that hccl ALLREDUCE writes on another stream",
    "one_slot": "the pinned source of an asynchronous copy to the device was written before",
    "no_wait_for_the_zeros": "aten::copy_ writes 16 bytes that aten::zero_ writes on another stream",
}


@pytest.fixture(scope="module")
def ends() -> dict[str, str]:
    done = under_virtual_npu("-m", "tests.dp.order_mutations", environment={"VIRTUAL_NPU_CHECK_ORDER": "line"})
    found: dict[str, str] = result_of(done)
    return found


def test_the_transport_as_it_is_is_ordered(ends: dict[str, str]) -> None:
    assert ends["nothing"] == ""


@pytest.mark.parametrize("mutation", EXPECTED)
def test_a_synchronisation_that_is_taken_away_is_missed(mutation: str, ends: dict[str, str]) -> None:
    assert "virtual-npu --check-order: " in ends[mutation]
    assert EXPECTED[mutation] in ends[mutation]
