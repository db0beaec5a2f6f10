# SPDX-License-Identifier: Apache-2.0
"""Which ranks a token has to reach: each (token, rank) pair once, sorted by rank. No communication, no host read.

A pair is sorted under a key that also says how many of the token's experts the rank has. The counts per key, which the sort
gives anyway, are thus all that sizes can be worked out from: rows to a rank, and copies that its experts will need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_ascend_patch.core.moe.constants import at_least, row_index
from vllm_ascend_patch.core.moe.topology import ExpertPlacement

from .local_routing import SortedRows, sort_by_expert


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of n tokens.

    Attributes:
        tokens: int32 ``[n * EP]``: the token of each pair in sorted order; only the first entries, one a pair, are defined.
        positions: int32 ``[n * EP]``: where pair (t, r) went (entry ``t * EP + r``), -1 when t has no expert on r.
        counts: int64 ``[EP * most]``: pairs of rank r that need c copies there, at ``r * most + c - 1``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor


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


def most_copies(placement: ExpertPlacement, top_k: int) -> int:
    """Most copies that any row needs on one rank."""
    return min(top_k, max(placement.counts))


def find_pairs(topk_ids: torch.Tensor, placement: ExpertPlacement) -> Pairs:
    """The pairs of int32 ``[n, K]`` expert ids, n at least 1."""
    (tokens, top_k), ranks = topk_ids.shape, len(placement.counts)
    keys = ranks * most_copies(placement, top_k)
    ones, key_of = _tables(placement.counts, top_k, topk_ids.device)
    held = ones.index_select(0, topk_ids.reshape(-1)).view(tokens, top_k, ranks).sum(1, dtype=torch.int32)
    pair_keys = key_of.index_select(0, held.view(-1)).view(tokens, ranks)
    found = sort_index(pair_keys, keys + 1, 0, keys)
    return Pairs(found.rows, found.positions, found.counts)


def no_pairs(placement: ExpertPlacement, top_k: int, device: torch.device) -> torch.Tensor:
    """The counts of a rank without a token."""
    return torch.zeros(len(placement.counts) * most_copies(placement, top_k), dtype=torch.int64, device=device)


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


def _tables(counts: Sequence[int], top_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two constants: int32 ``[E, EP]``, whose sum over a token's experts is ``2 * K * r + copies on rank r``; and the key
    for each such sum, the number of keys where there is no copy."""
    ranks, most = len(counts), min(top_k, max(counts))

    def ones(_: int) -> torch.Tensor:
        owner = torch.repeat_interleave(torch.arange(ranks), torch.tensor(counts))
        return (2 * torch.arange(ranks) + (owner.unsqueeze(1) == torch.arange(ranks))).int().to(device)

    def key_of(_: int) -> torch.Tensor:
        copies = torch.arange(2 * top_k)
        key = most * torch.arange(ranks).unsqueeze(1) + copies - 1
        return key.where((copies >= 1) & (copies <= most), torch.tensor(ranks * most)).int().view(-1).to(device)

    key = (tuple(counts), top_k, device)
    return at_least(1, ("held", *key), ones), at_least(1, ("pair keys", *key), key_of)
