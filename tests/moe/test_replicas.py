# SPDX-License-Identifier: Apache-2.0
"""Logical experts become physical ones: always a replica of the same expert, replicas share the tokens, loads add up."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch.core.moe.router_ops import map_to_replicas, record_load


def tables(replicas: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """vLLM's two tables for experts with so many replicas each, and the logical expert of each physical one."""
    slots = torch.full((len(replicas), max(replicas)), -1)
    logical_of: list[int] = []
    for copy in range(max(replicas)):  # replicas of one expert are not neighbours
        for expert, count in enumerate(replicas):
            if copy < count:
                slots[expert, copy] = len(logical_of)
                logical_of.append(expert)
    return slots, torch.tensor(replicas), logical_of


@given(
    replicas=st.lists(st.integers(1, 4), min_size=2, max_size=9), tokens=st.integers(0, 70), seed=st.integers(0, 1000)
)
def test_each_copy_goes_to_a_replica_of_its_expert_and_is_counted_once(
    replicas: list[int], tokens: int, seed: int
) -> None:
    slots, counts, logical_of = tables(replicas)
    generator = torch.Generator().manual_seed(seed)
    logical = torch.rand(tokens, len(replicas), generator=generator).topk(2, dim=1).indices.to(torch.int32)
    physical = map_to_replicas(logical, slots, counts)
    assert physical.dtype == torch.int32
    assert [[logical_of[p] for p in row] for row in physical.tolist()] == logical.tolist()

    real = tokens // 2  # the rest is padding
    load = torch.zeros(len(logical_of), dtype=torch.int32)
    record_load(load, physical, torch.tensor([1]), torch.tensor([real], dtype=torch.int32))
    assert load.tolist() == torch.bincount(physical[:real].flatten().long(), minlength=len(logical_of)).tolist()
    before = load.clone()
    record_load(load, physical, torch.tensor([0]), None)
    assert torch.equal(load, before)
    record_load(load, physical, torch.tensor([1]), None)
    assert int(load.sum()) == 2 * (real + tokens)


def test_replicas_share_an_experts_tokens_and_ids_of_no_expert_stay_out() -> None:
    slots, counts, _ = tables([3, 1])
    logical = torch.zeros(600, 1, dtype=torch.int32)
    physical = map_to_replicas(logical, slots, counts)
    shares = torch.bincount(physical.flatten().long(), minlength=4)[slots[0]]
    assert shares.min() >= 150
    assert map_to_replicas(torch.tensor([[-1, 2, 1]]), slots, counts).tolist() == [[-1, -1, int(slots[1, 0])]]
