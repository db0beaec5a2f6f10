# SPDX-License-Identifier: Apache-2.0
"""How many drafts a step refused is the same on the host as by the kernel that tells the device."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch.core.kernels.drafts import eagle_prepare_inputs_padded
from vllm_ascend_patch.core.refused_drafts import refused_drafts

REQUESTS = st.integers(0, 15).flatmap(lambda drafts: st.tuples(st.just(drafts), st.integers(0, drafts + 1)))


def test_each_outcome_of_two_drafts() -> None:
    """None accepted, one, both; the request is discarded; a request without drafts, sampled and discarded."""
    assert refused_drafts([2, 2, 2, 2, 0, 0], [1, 2, 3, 0, 1, 0]) == [2, 1, 0, 3, 0, 0]


@given(st.lists(REQUESTS, min_size=1, max_size=20))
def test_host_and_kernel_agree(requests: list[tuple[int, int]]) -> None:
    drafts, sampled = [list(column) for column in zip(*requests, strict=True)]
    found = torch.zeros(len(requests), dtype=torch.int32)
    queries = torch.tensor([0, *(count + 1 for count in drafts)]).cumsum(0).int()
    ends, counts = torch.tensor(drafts).cumsum(0).int(), torch.tensor(sampled, dtype=torch.int32)
    eagle_prepare_inputs_padded(ends, counts, queries, torch.zeros_like(found), found, len(requests))
    assert refused_drafts(drafts, sampled) == found.tolist()
