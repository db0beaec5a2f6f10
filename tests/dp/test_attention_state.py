# SPDX-License-Identifier: Apache-2.0
"""The attention state of a batch, from counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch.core.attention_state import AttentionState, decide_attention_state

# Each request: (computed, scheduled, prompt, drafts)
CASES = [
    ("new prompts only", [(0, 5, 5, 0), (0, 9, 9, 0)], AttentionState.PREFILL_NO_CACHE, 2),
    ("first chunk of a long prompt", [(0, 512, 2000, 0)], AttentionState.PREFILL_NO_CACHE, 1),
    ("one prompt with a cached prefix", [(0, 5, 5, 0), (16, 4, 20, 0)], AttentionState.PREFILL_CACHE_HIT, 2),
    ("second chunk of a long prompt", [(512, 512, 2000, 0)], AttentionState.PREFILL_CACHE_HIT, 1),
    ("last prompt token recomputed after a full prefix hit", [(31, 1, 32, 0)], AttentionState.PREFILL_CACHE_HIT, 1),
    ("decodes", [(5, 1, 5, 0), (30, 1, 20, 0)], AttentionState.DECODE_ONLY, 0),
    ("decode with drafts", [(5, 3, 5, 2), (30, 1, 20, 0)], AttentionState.SPEC_DECODING, 0),
    ("a prompt joins decodes", [(5, 1, 5, 0), (0, 7, 7, 0)], AttentionState.CHUNKED_PREFILL, 1),
    ("preempted, recomputing its own output", [(40, 8, 20, 0), (9, 1, 9, 0)], AttentionState.CHUNKED_PREFILL, 1),
]


@pytest.mark.parametrize(("requests", "state", "prefills"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_state(requests: list[tuple[int, ...]], state: AttentionState, prefills: int) -> None:
    decision = decide_attention_state(*np.array(requests).T)
    assert (decision.state, decision.num_prefills, decision.with_prefill) == (state, prefills, prefills > 0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_order_of_requests_does_not_matter(requests: list[tuple[int, int, int]]) -> None:
    forwards = decide_attention_state(*np.array(requests).T)
    backwards = decide_attention_state(*np.array(requests[::-1]).T)
    assert forwards == backwards
    assert 0 <= forwards.num_prefills <= len(requests)


@pytest.mark.parametrize(
    "arrays",
    [([], [], []), ([1], [1, 1], [1]), ([3], [0], [5])],
    ids=["no request", "different lengths", "nothing scheduled"],
)
def test_bad_counts_are_refused(arrays: tuple[list[int], ...]) -> None:
    with pytest.raises(ValueError, match=r"scheduled tokens|equally long"):
        decide_attention_state(*(np.array(a) for a in arrays))
