# SPDX-License-Identifier: Apache-2.0
"""Sorting rows by expert on one rank, and the weighted sum back per token. No communication."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_ascend_patch.core.moe.constants import row_index


@dataclass(frozen=True, eq=False)
class SortedRows:
    """Rows sorted by expert.

    Attributes:
        rows: ``[N * K, H]``, or as many as were asked for; only the first ``counts.sum()`` rows are defined.
        positions: int32 ``[N * K]``: where the k-th copy of token t went (entry ``t * K + k``), -1 when its expert is
            outside the range that was asked for.
        counts: int64 ``[experts in the range]``.
        row_scales: fp32, one per row, sorted along, or None.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    row_scales: torch.Tensor | None


def sort_by_expert(
    hidden: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    first: int,
    last: int,
    scales: torch.Tensor | None = None,
    copies: int | None = None,
) -> SortedRows:
    """Copy each of N rows to each of its K experts in ``[first, last)``, sorted by expert.

    Args:
        hidden: ``[N, H]``, N >= 1; int8 when ``scales`` is given.
        topk_ids: int32 ``[N, K]``.
        num_experts: E, all expert ids are below it.
        scales: fp32 ``[N]``, one per row.
        copies: how many of the N * K copies are in the range, where that is known: there is no room for more. torch_npu
            2.7.1 takes no such number (``soc.routing_operator_version``).
    """
    import torch_npu

    # Every argument is given: defaults differ between torch_npu 2.7.1 and 2.13.0 (quant_mode 0 and -1).
    rows, positions, counts, row_scales = torch_npu.npu_moe_init_routing_v2(
        hidden,
        topk_ids,
        scale=scales,
        active_num=topk_ids.numel() if copies is None else copies,
        expert_num=num_experts,
        drop_pad_mode=0,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        quant_mode=-1,
        active_expert_range=[first, last],
        row_idx_type=0,
    )
    return SortedRows(rows, positions, counts, row_scales if scales is not None else None)


def weighted_sum(
    expert_output: torch.Tensor, sorted_rows: SortedRows, topk_weights: torch.Tensor, all_local: bool
) -> torch.Tensor:
    """Sum over a token's experts of weight times result: ``[N * K, H]`` -> ``[N, H]``.

    Args:
        expert_output: results in the order of ``sorted_rows``; rows past the counts are undefined. Modified in place
            when not ``all_local``.
        topk_weights: fp32 ``[N, K]``.
        all_local: True when every expert id was inside the range, so that every row is defined.
    """
    import torch_npu

    positions = sorted_rows.positions
    if not all_local:
        positions = _without_absent(expert_output, sorted_rows)
    return torch_npu.npu_moe_token_unpermute(expert_output, positions, probs=topk_weights)


def sum_present(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over k of weight times row, for each of N tokens, of the rows that exist: ``[A, H]`` -> ``[N, H]``, A, N >= 1.

    Args:
        positions: int32 ``[N * K]``: the row of entry (t, k) at ``t * K + k``, -1 where there is none.
        weights: ``[N, K]`` of the rows' dtype; beside bf16 rows fp32, too, unless torch_npu is 2.7.1.

    Mode 3 of the operator (row by row, with dropped copies) is the one for which the vendor documents -1; it takes rows as
    ``[experts, capacity, H]``, of which one expert with A rows is a case. It sums in float32.
    """
    import torch_npu

    return torch_npu.npu_moe_finalize_routing(rows.unsqueeze(0), None, None, None, weights, positions, None, 3)


def _without_absent(expert_output: torch.Tensor, sorted_rows: SortedRows) -> torch.Tensor:
    """Positions in which the copies that went nowhere have a row of zeros each.

    The unpermute operator takes positions that are valid and distinct, so the absent copies (-1) get the undefined rows
    past the counts, one each, from the end. Those are zeroed here; they can hold NaN, so that weight zero would not do.
    """
    positions, copies = sorted_rows.positions, expert_output.shape[0]
    absent = positions < 0
    undefined = row_index(copies, expert_output.device) >= sorted_rows.counts.sum()
    expert_output.masked_fill_(undefined.unsqueeze(1), 0)
    from_the_end = copies - torch.cumsum(absent, 0, dtype=torch.int32)
    return torch.where(absent, from_the_end, positions)
