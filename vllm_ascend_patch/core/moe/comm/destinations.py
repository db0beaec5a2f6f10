# SPDX-License-Identifier: Apache-2.0
"""Which destinations, ranks or hosts, a token has to reach: each (token, destination) pair once, sorted. No communication.

A pair is sorted under a key that also says how many of the token's experts are behind the destination. The counts per key,
which the sort gives anyway, are thus all that sizes are worked out from: rows to a rank, and copies that its experts need.
Nothing here reads the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch

from vllm_ascend_patch.core.moe.constants import at_least, row_index
from vllm_ascend_patch.core.moe.topology import ExpertPlacement

from .local_routing import SortedRows, sort_by_expert

_SMALLEST, _LARGEST = 1e-37, 3e38
"""Positive values that float32 holds with all its digits, sums included."""
_GAP = 1.0625
"""What separates the largest sum of a destination from the smallest of the next; sums are exact to float32's 1e-7."""


@dataclass(frozen=True)
class Targets:
    """Destinations.

    Attributes:
        experts: for each, the first expert behind it and the one after its last.
        copies: for each, the most experts of a token that are told apart behind it; 1 counts pairs only.
    """

    experts: tuple[tuple[int, int], ...]
    copies: tuple[int, ...]

    def __add__(self, others: Targets) -> Targets:
        return Targets(self.experts + others.experts, self.copies + others.copies)

    @property
    def keys(self) -> int:
        """Keys that pairs are sorted under: those of a destination follow each other, one for each number of copies."""
        return sum(self.copies)

    @classmethod
    def ranks(cls, placement: ExpertPlacement, top_k: int) -> Targets:
        """Every rank, with copies counted."""
        ends = [0]
        for count in placement.counts:
            ends.append(ends[-1] + count)
        return cls(tuple(pairwise(ends)), (min(top_k, max(placement.counts)),) * len(placement.counts))

    @classmethod
    def pairs_only(cls, experts: Iterable[tuple[int, int]]) -> Targets:
        """With copies not counted."""
        experts = tuple(experts)
        return cls(experts, (1,) * len(experts))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of n tokens and T destinations.

    Attributes:
        tokens: int32 ``[n * T]``: the token of each pair in sorted order; only the first entries, one a pair, are defined.
        positions: int32 ``[n * T]``: where pair (t, d) went (entry ``t * T + d``), -1 when t has no expert behind d.
        counts: int64 ``[keys]``: of each destination, pairs that need 1, 2, ... copies there.
        destinations: T.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    destinations: int

    def first(self, destinations: int) -> Pairs:
        """Those with the first ``destinations`` only, whose pairs come first; counts are not cut."""
        positions = self.positions.view(-1, self.destinations)[:, :destinations].reshape(-1)
        return Pairs(self.tokens, positions, self.counts, destinations)


@dataclass(frozen=True)
class Sizes:
    """One rank's part of an exchange, on the host.

    Attributes:
        send: rows to each rank.
        receive: rows from each rank.
        copies: (row, local expert) pairs among the received rows.
    """

    send: list[int]
    receive: list[int]
    copies: int

    @classmethod
    def of(cls, counts: torch.Tensor, rank: int) -> Sizes:
        """From the counts of all ranks, on the CPU: int64 ``[EP, EP, most]``, by sender and receiver."""
        arriving = counts[:, rank].tolist()
        return cls(
            [sum(rows) for rows in counts[rank].tolist()],
            [sum(rows) for rows in arriving],
            sum(copies * count for rows in arriving for copies, count in enumerate(rows, start=1)),
        )


def find_pairs(topk_ids: torch.Tensor, targets: Targets, num_experts: int, fused: bool = True) -> Pairs:
    """The pairs of int32 ``[n, K]`` expert ids, n at least 1.

    Args:
        targets: destinations.
        num_experts: E, all ids are below it.
        fused: whether the operators that ``_keys_fused`` takes may be used.
    """
    values = _values(targets, topk_ids.shape[1]) if fused else None
    if values is None:
        keys = _keys_by_table(topk_ids, targets, num_experts)
    else:
        keys = _keys_fused(topk_ids, targets, num_experts, values)
    found = sort_index(keys, targets.keys + 1, 1, targets.keys + 1)
    return Pairs(found.rows, found.positions, found.counts, len(targets.experts))


def sort_index(
    topk_ids: torch.Tensor, num_experts: int, first: int, last: int, scales: torch.Tensor | None = None
) -> SortedRows:
    """As ``sort_by_expert``, of row numbers instead of rows: int32 ``[N * K]``, the row of each copy in sorted order.

    The operator makes room for N * K rows; whoever knows how many copies there are gathers only these.
    """
    count = topk_ids.shape[0]
    # Numbers travel as the bits of a dtype that the operator only moves, with scales beside them.
    numbers = row_index(count, topk_ids.device).view(torch.bfloat16).view(count, 2)
    found = sort_by_expert(numbers, topk_ids, num_experts, first, last, scales)
    return SortedRows(found.rows.view(torch.int32).view(-1), found.positions, found.counts, found.row_scales)


def _values(targets: Targets, top_k: int) -> list[tuple[float, float]] | None:
    """For each destination what an expert behind it adds to a token's sum, and the largest such sum.

    The sums of a destination, whatever the number of copies, all lie above those of the destinations before. None when
    float32 has no room for that.
    """
    values, value = [], _SMALLEST
    for (first, last), copies in zip(targets.experts, targets.copies, strict=True):
        largest = value * max(min(top_k, last - first), copies)
        values.append((value, largest))
        value = largest * _GAP
    return values if value <= _LARGEST else None


def _keys_fused(
    topk_ids: torch.Tensor, targets: Targets, num_experts: int, values: list[tuple[float, float]]
) -> torch.Tensor:
    """int32 ``[n, T]``: 0 where a token has no expert behind a destination, else the pair's key and 1. Two launches.

    The first sums ``values`` over a token's experts, which are 0 for experts elsewhere; the second says between which of the
    possible sums the result lies.
    """
    tokens, top_k = topk_ids.shape
    device, key = topk_ids.device, (targets, num_experts, top_k, topk_ids.device)

    def summands(_: int) -> torch.Tensor:
        table = torch.zeros(num_experts, len(values))
        for target, (first, last) in enumerate(targets.experts):
            table[first:last, target] = values[target][0]
        return table.to(device)

    def between(_: int) -> torch.Tensor:
        edges, below = [], 0.0
        for (value, largest), most in zip(values, targets.copies, strict=True):
            for copies in range(1, most + 1):
                edges.append((below + value * copies) / 2)
                below = value * copies
            below = largest
        return torch.tensor(edges).to(device)

    bags = at_least(tokens, ("bags", top_k, device), lambda n: row_index(n, device) * top_k)[:tokens]
    table, edges = at_least(1, ("summands", *key), summands), at_least(1, ("between", *key), between)
    sums = torch.embedding_bag(table, topk_ids.reshape(-1), bags, False, 0, False)[0]
    return torch.bucketize(sums, edges, out_int32=True)


def _keys_by_table(topk_ids: torch.Tensor, targets: Targets, num_experts: int) -> torch.Tensor:
    """As ``_keys_fused``, for any number of destinations, in three launches.

    ``2 * K * d + copies behind d`` is summed over the token's experts, and a table has the key for each such sum.
    """
    (tokens, top_k), width = topk_ids.shape, len(targets.experts)
    device, key = topk_ids.device, (targets, num_experts, top_k, topk_ids.device)

    def ones(_: int) -> torch.Tensor:
        table = (2 * torch.arange(width)).repeat(num_experts, 1)
        for target, (first, last) in enumerate(targets.experts):
            table[first:last, target] += 1
        return table.int().to(device)

    def key_of(_: int) -> torch.Tensor:
        held, most = torch.arange(2 * top_k), torch.tensor(targets.copies).unsqueeze(1)
        keys = most.cumsum(0) - most + held.minimum(most)
        return keys.where(held > 0, torch.tensor(0)).int().view(-1).to(device)

    table, keys = at_least(1, ("held", *key), ones), at_least(1, ("pair keys", *key), key_of)
    held = table.index_select(0, topk_ids.reshape(-1)).view(tokens, top_k, width).sum(1, dtype=torch.int32)
    return keys.index_select(0, held.view(-1)).view(tokens, width)
