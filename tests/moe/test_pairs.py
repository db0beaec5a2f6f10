# SPDX-License-Identifier: Apache-2.0
"""AllToAll's bookkeeping: which ranks a token reaches, what is exchanged for that, and how a row carries its routing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

torch_npu = pytest.importorskip("torch_npu", reason="needs the virtual NPU")

from vllm_ascend_patch.core.moe.comm.destinations import Sizes, Targets, find_pairs  # noqa: E402
from vllm_ascend_patch.core.moe.comm.hierarchical import relays  # noqa: E402
from vllm_ascend_patch.core.moe.comm.packed_rows import RowLayout  # noqa: E402
from vllm_ascend_patch.core.moe.topology import ExpertPlacement  # noqa: E402

placements = st.lists(st.integers(1, 5), min_size=2, max_size=9).map(lambda counts: ExpertPlacement(tuple(counts)))
MANY = ExpertPlacement.linear(700, 256)  # more than float32 has room for: keys come from a table


@settings(max_examples=40, deadline=None)
@given(
    placement=placements | st.just(MANY),
    tokens=st.integers(1, 30),
    seed=st.integers(0, 1000),
    fused=st.booleans(),
    data=st.data(),
)
def test_a_token_is_sent_once_to_each_rank_that_has_one_of_its_experts(
    placement: ExpertPlacement, tokens: int, seed: int, fused: bool, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(placement.num_experts, 8)))
    scores = torch.rand(tokens, placement.num_experts, generator=torch.Generator().manual_seed(seed))
    ids = scores.topk(top_k, dim=1).indices.int()
    owner = [rank for rank, count in enumerate(placement.counts) for _ in range(count)]
    held = [[owner[expert] for expert in row] for row in ids.tolist()]

    targets = Targets.ranks(placement, top_k)
    pairs = find_pairs(ids.npu(), targets, placement.num_experts, fused)
    ranks = len(placement.counts)
    counts = pairs.counts.cpu().view(ranks, targets.copies[0])
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


@settings(max_examples=40, deadline=None)
@given(
    ends=st.lists(st.integers(0, 40), min_size=3, max_size=8, unique=True).map(sorted),
    top_k=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_keys_are_the_same_whichever_operators_find_them(ends: list[int], top_k: int, seed: int) -> None:
    """Of any ranges of experts, twice, with and without copies counted; other experts are behind no destination."""
    ranges = tuple(pairwise(ends))
    counted = Targets(ranges, (min(top_k, max(last - first for first, last in ranges)),) * len(ranges))
    targets = Targets.pairs_only(ranges) + counted
    ids = torch.rand(20, 41, generator=torch.Generator().manual_seed(seed)).topk(top_k, dim=1).indices.int().npu()
    fused, by_table = (find_pairs(ids, targets, 41, fused) for fused in (True, False))
    assert torch.equal(fused.counts.cpu(), by_table.counts.cpu())
    assert torch.equal(fused.positions.cpu(), by_table.positions.cpu())


def test_sizes_of_an_exchange_by_hand() -> None:
    counts = torch.zeros(2, 2, 3, dtype=torch.int64)
    counts[0, 0], counts[0, 1] = torch.tensor([5, 0, 1]), torch.tensor([2, 3, 0])
    counts[1, 0], counts[1, 1] = torch.tensor([0, 0, 0]), torch.tensor([0, 4, 7])
    assert Sizes.of(counts, 0) == Sizes(send=[6, 5], receive=[6, 0], copies=5 * 1 + 1 * 3)
    assert Sizes.of(counts, 1) == Sizes(send=[0, 11], receive=[5, 11], copies=2 + 3 * 2 + 4 * 2 + 7 * 3)


def test_the_relay_is_the_own_rank_at_home_and_the_one_in_the_same_place_elsewhere() -> None:
    assert relays((2, 2)) == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert relays((3, 1)) == [[0, 3], [1, 3], [2, 3], [0, 3]]
    assert relays((1, 2, 1)) == [[0, 1, 3], [0, 1, 3], [0, 2, 3], [0, 1, 3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("exact_weights", [False, True])
@pytest.mark.parametrize(("hidden_size", "top_k"), [(16, 8), (17, 3), (30, 1)])
def test_a_row_brings_back_what_was_packed(
    dtype: torch.dtype, quantized: bool, exact_weights: bool, hidden_size: int, top_k: int
) -> None:
    if quantized and dtype == torch.float32:
        return
    weights_dtype = torch.float32 if exact_weights else dtype
    layout = RowLayout(hidden_size, top_k, dtype, quantized, weights_dtype)
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
    assert torch.equal(layout.weights(rows).cpu(), weights[taken].to(weights_dtype))
    found = layout.scales(rows)
    assert (found is None) == (scales is None)
    if found is not None and scales is not None:
        assert torch.equal(found.cpu(), scales[taken])
