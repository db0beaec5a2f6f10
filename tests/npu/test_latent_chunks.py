# SPDX-License-Identifier: Apache-2.0
"""Context in chunks: every token of every context once, in an order and at places that the operators take."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch.npu.attention.mla.chunks import chunked_context, plan

BLOCK = 128


@given(
    st.lists(st.one_of(st.just(0), st.integers(1, 2000)), max_size=12),
    st.integers(1, 8).map(lambda blocks: blocks * BLOCK),
)
def test_a_plan_has_every_token_of_context_once(context_lens: list[int], rows: int) -> None:
    chunks = plan(context_lens, rows, BLOCK)
    seen = [0] * len(context_lens)
    for shares in chunks:
        assert sum(length for _, _, length in shares) <= rows
        assert all(after[0] == before[0] + 1 for before, after in pairwise(shares)), "requests of a chunk follow"
        for request, start, length in shares:
            assert length > 0
            assert start % BLOCK == 0
            assert start == seen[request], "a request's shares follow each other"
            seen[request] += length
    assert seen == context_lens


def test_a_plan_by_hand() -> None:
    """512 rows: the second request is cut at a block, the third has no context, the fourth fills what is left."""
    assert plan([200, 500, 0, 300], 512, BLOCK) == [
        [(0, 0, 200), (1, 0, 256)],
        [(1, 256, 244)],
        [(3, 0, 300)],
    ]


def test_few_chunks_are_made() -> None:
    """Contexts that fit share one chunk, whatever their number; a long one takes full chunks."""
    assert len(plan([64] * 8, 512, BLOCK)) == 1
    assert [shares[0][2] for shares in plan([1400], 512, BLOCK)] == [512, 512, 376]


def test_chunks_have_the_operators_forms() -> None:
    context = chunked_context([200, 500, 0, 300], [3, 10, 11, 15], torch.zeros(512, 576), BLOCK)
    first, second, third = context.chunks
    assert (first.request_slice, first.token_slice, first.num_context_tokens) == (slice(0, 2), slice(0, 10), 456)
    assert (second.request_slice, second.token_slice, second.num_context_tokens) == (slice(1, 2), slice(3, 10), 244)
    assert (third.request_slice, third.token_slice) == (slice(3, 4), slice(11, 15))
    for chunk, starts, ends, lens in ((first, [0, 0], [0, 200, 456], [200, 256]), (second, [256], [0, 244], [244])):
        assert chunk.starts.tolist() == starts
        assert chunk.cu_seq_lens.tolist() == ends
        assert chunk.seq_lens.tolist() == lens
        assert {t.dtype for t in (chunk.starts, chunk.cu_seq_lens, chunk.seq_lens)} == {torch.int32}
