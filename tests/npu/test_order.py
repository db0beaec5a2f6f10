# SPDX-License-Identifier: Apache-2.0
"""The order of whole decode steps and of the active mask: silent under the virtual NPU's check, caught with any
synchronisation taken away."""

from __future__ import annotations

import pytest

from tests.support.installed import HAS_GRAPHS_OF_WHOLE_STEPS
from tests.support.processes import result_of, under_virtual_npu

pytestmark = pytest.mark.skipif(not HAS_GRAPHS_OF_WHOLE_STEPS, reason="this release captures no whole steps")

# mutation, what is said
EXPECTED = {
    "whole steps, no_wait_for_the_replay": "writes 1 bytes that the replay of graph",
    "whole steps, no_record_of_the_replay": "writes 1 bytes that the replay of graph",
    "the active mask, mask_on_a_side_stream": "in the replay of graph",
}


@pytest.fixture(scope="module")
def ends() -> dict[str, str]:
    done = under_virtual_npu("-m", "tests.npu.order_mutations", environment={"VIRTUAL_NPU_CHECK_ORDER": "line"})
    found: dict[str, str] = result_of(done)
    return found


def test_the_product_as_it_is_is_ordered(ends: dict[str, str]) -> None:
    assert ends["whole steps"] == ""
    assert ends["the active mask"] == ""


@pytest.mark.parametrize("mutation", EXPECTED)
def test_a_synchronisation_that_is_taken_away_is_missed(mutation: str, ends: dict[str, str]) -> None:
    assert EXPECTED[mutation] in ends[mutation]
