# SPDX-License-Identifier: Apache-2.0
"""AllToAll's bookkeeping: which ranks a token reaches, what is exchanged for that, and how a row carries its routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

torch_npu = pytest.importorskip("torch_npu", reason="needs the virtual NPU")

from vllm_ascend_patch.core.moe.comm.destinations import Sizes, find_pairs, most_copies  # noqa: E402
from vllm_ascend_patch.core.moe.comm.packed_rows import RowLayout  # noqa: E402
from vllm_ascend_patch.core.moe.topology import ExpertPlacement  # noqa: E402

placements = st.lists(st.integers(1, 5), min_size=2, max_size=9).map(lambda counts: ExpertPlacement(tuple(counts)))


@settings(max_examples=40, deadline=None)
@given(placement=placements, tokens=st.integers(1, 30), seed=st.integers(0, 1000), data=st.data())
def test_a_token_is_sent_once_to_each_rank_that_has_one_of_its_experts(
    placement: ExpertPlacement, tokens: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(placement.num_experts, 8)))
    scores = torch.rand(tokens, placement.num_experts, generator=torch.Generator().manual_seed(seed))
    ids = scores.topk(top_k, dim=1).indices.int()
    owner = [rank for rank, count in enumerate(placement.counts) for _ in range(count)]
    held = [[owner[expert] for expert in row] for row in ids.tolist()]

    pairs = find_pairs(ids.npu(), placement)
    ranks = len(placement.counts)
    counts = pairs.counts.cpu().view(ranks, most_copies(placement, top_k))
    assert counts.sum(1).tolist() == [sum(rank in row for row in held) for rank in range(ranks)]
    copies = (counts * torch.arange(1, counts.shape[1] + 1)).sum(1)
    assert copies.tolist() == [sum(row.count(rank) for row in held) for rank in range(ranks)]

    positions = pairs.positions.cpu().view(tokens, ranks).tolist()
    order = pairs.tokens.cpu().tolist()
    starts = [0, *counts.sum(1).cumsum(0).tolist()]
    for token, row in enumerate(positions):
        for rank, position in enumerate(row):
            assert (position >= 0) == (rank in held[token])
            if position >= 0:
                assert order[position] == token
                assert starts[rank] <= position < starts[rank + 1]


def test_sizes_of_an_exchange_by_hand() -> None:
    counts = torch.zeros(2, 2, 3, dtype=torch.int64)
    counts[0, 0], counts[0, 1] = torch.tensor([5, 0, 1]), torch.tensor([2, 3, 0])
    counts[1, 0], counts[1, 1] = torch.tensor([0, 0, 0]), torch.tensor([0, 4, 7])
    assert Sizes.of(counts, 0) == Sizes(send=[6, 5], receive=[6, 0], copies=5 * 1 + 1 * 3)
    assert Sizes.of(counts, 1) == Sizes(send=[0, 11], receive=[5, 11], copies=2 + 3 * 2 + 4 * 2 + 7 * 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("hidden_size", "top_k"), [(16, 8), (17, 3), (30, 1)])
def test_a_row_brings_back_what_was_packed(dtype: torch.dtype, quantized: bool, hidden_size: int, top_k: int) -> None:
    if quantized and dtype == torch.float32:
        return
    layout = RowLayout(hidden_size, top_k, dtype, quantized)
    hidden = torch.randn(5, hidden_size).to(dtype)
    scales = torch.rand(5) if quantized else None
    if quantized:
        hidden = torch.randint(-128, 128, (5, hidden_size), dtype=torch.int8)
    ids, weights = torch.randint(0, 1 << 20, (5, top_k), dtype=torch.int32), torch.rand(5, top_k)
    rows = layout.pack(hidden.npu(), ids.npu(), weights.npu(), None if scales is None else scales.npu()).index_select(
        0, torch.tensor([4, 0, 4]).npu()
    )
    assert rows.dtype == layout.dtype
    assert rows.shape[1] * rows.element_size() % 4 == 0
    taken = [4, 0, 4]
    assert torch.equal(layout.hidden(rows).cpu(), hidden[taken])
    assert torch.equal(layout.ids(rows).cpu(), ids[taken])
    assert torch.equal(layout.weights(rows).cpu(), weights[taken].to(dtype))
    found = layout.scales(rows)
    assert (found is None) == (scales is None)
    if found is not None and scales is not None:
        assert torch.equal(found.cpu(), scales[taken])
