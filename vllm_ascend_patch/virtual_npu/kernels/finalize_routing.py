# SPDX-License-Identifier: Apache-2.0
"""Bringing expert rows back or into another order on one rank: ``npu_moe_finalize_routing``, ``npu_moe_re_routing``."""

from __future__ import annotations

import torch

from .limits import (
    ABSENT,
    poison,
    require,
    require_dim,
    require_dtype,
    require_ids,
    require_shape,
    unsupported,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def moe_finalize_routing(
    expanded_permuted_rows: torch.Tensor,
    skip1: torch.Tensor | None,
    skip2: torch.Tensor | None,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None,
    expanded_src_to_dst_row: torch.Tensor,
    export_for_source_row: torch.Tensor | None,
    drop_pad_mode: int | None = 0,
    k: object = ABSENT,
) -> torch.Tensor:
    """``out[t] = skip1[t] + skip2[t] + sum_k scales[t, k] * (rows[index(t, k)] + bias[expert(t, k)])``.

    Args:
        expanded_permuted_rows: ``[rows, H]`` (modes 0, 2) or ``[E, C, H]`` (1, 3); fp16, bf16 or fp32.
        skip1: ``[T, H]``; skip2 needs it. Same dtype as the rows, like bias ``[E, H]`` and scales ``[T, K]``; beside bf16
            rows scales may be fp32 (from CANN 8.5 on, hence not with torch_npu 2.7.1).
        expanded_src_to_dst_row: int32 ``[T * K]``: where the row of copy (t, k) is. Modes 0 and 1 store it at
            ``k * T + t``, modes 2 and 3 at ``t * K + k`` (what ``npu_moe_init_routing_v2`` returns). -1 adds nothing.
        export_for_source_row: int32 ``[T, K]``, the experts; needed with bias.
        k: copies per token when scales is None (torch_npu 2.13; 2.7.1 takes 1).
    """
    op = "npu_moe_finalize_routing"
    rows, index = expanded_permuted_rows, expanded_src_to_dst_row
    mode = 0 if drop_pad_mode is None else drop_pad_mode
    require(op, mode in (0, 1, 2, 3), "drop_pad_mode must be 0 to 3", mode)
    require_dtype(op, "expanded_permuted_rows", rows, FLOATS)
    require_dim(op, f"expanded_permuted_rows with drop_pad_mode {mode}", rows, 3 if mode in (1, 3) else 2)
    require_dim(op, "expanded_src_to_dst_row", index, 1)
    require_dtype(op, "expanded_src_to_dst_row", index, (torch.int32,))
    copies = 1 if k is ABSENT or k is None else int(k)  # type: ignore[call-overload]
    if scales is not None:
        require_dim(op, "scales", scales, 2)
        copies = scales.shape[1]
    require(op, copies > 0, "k must be positive", copies)
    require(op, index.numel() % copies == 0, f"expanded_src_to_dst_row must hold {copies} per token", index.numel())
    tokens, hidden = index.numel() // copies, rows.shape[-1]
    require(op, skip2 is None or skip1 is not None, "skip2 needs skip1", "skip2 alone")
    for name, tensor, shape in (
        ("skip1", skip1, (tokens, hidden)),
        ("skip2", skip2, (tokens, hidden)),
        ("scales", scales, (tokens, copies)),
    ):
        if tensor is not None:
            mixed = name == "scales" and k is not ABSENT and rows.dtype == torch.bfloat16
            require(
                op,
                tensor.dtype == rows.dtype or (mixed and tensor.dtype == torch.float32),
                f"{name} must have the dtype of the rows ({rows.dtype})",
                tensor.dtype,
            )
            require_shape(op, name, tensor, shape)
    flat = rows.reshape(-1, hidden)
    low = int(index.min()) if index.numel() else 0
    require(op, low >= -1, "expanded_src_to_dst_row must be at least -1", low)
    require_ids(op, "expanded_src_to_dst_row", index.clamp(min=0), max(len(flat), 1))

    where = index.view(copies, tokens).t() if mode in (0, 1) else index.view(tokens, copies)
    missing = (where < 0).unsqueeze(-1)
    taken = flat.float()[where.clamp(min=0).long()].masked_fill(missing, 0.0)  # [T, K, H]
    if bias is not None:
        if export_for_source_row is None:
            raise RuntimeError(f"{op}: bias needs export_for_source_row, got None")
        require_dtype(op, "export_for_source_row", export_for_source_row, (torch.int32,))
        require_shape(op, "export_for_source_row", export_for_source_row, (tokens, copies))
        require(op, bias.dtype == rows.dtype, f"bias must have the dtype of the rows ({rows.dtype})", bias.dtype)
        require_shape(op, "bias", bias, (bias.shape[0], hidden))
        require_ids(op, "export_for_source_row", export_for_source_row, bias.shape[0])
        taken = taken + bias.float()[export_for_source_row.long()].masked_fill(missing, 0.0)
    if scales is not None:
        taken = taken * scales.float().unsqueeze(-1)
    out = taken.sum(dim=1)
    for skip in (skip1, skip2):
        if skip is not None:
            out = out + skip.float()
    return out.to(rows.dtype)


def moe_re_routing(
    tokens: torch.Tensor,
    expert_token_num_per_rank: torch.Tensor,
    *,
    per_token_scales: torch.Tensor | None = None,
    expert_token_num_type: int = 1,
    idx_type: int = 0,
    tokens_dtype: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that arrived rank by rank (each sorted by expert) become rows expert by expert (each sorted by rank).

    Args:
        tokens: ``[A, H]`` fp16, bf16 or int8, H below 16384.
        expert_token_num_per_rank: int32 or int64 ``[ranks, experts]``, counts that sum to A.
        per_token_scales: float32 ``[A]``.

    Returns:
        tokens ``[A, H]``; scales float32 ``[A]`` (unwritten if not given); the source row of every output row, int32
        ``[A]``; rows per expert, in the dtype of the table.
    """
    op = "npu_moe_re_routing"
    table = expert_token_num_per_rank
    require_dim(op, "tokens", tokens, 2)
    require_dtype(op, "tokens", tokens, (torch.float16, torch.bfloat16, torch.int8))
    rows, hidden = tokens.shape
    require(op, hidden < 16384, "the hidden size must be below 16384", hidden)
    require_dim(op, "expert_token_num_per_rank", table, 2)
    require_dtype(op, "expert_token_num_per_rank", table, (torch.int32, torch.int64))
    require(op, expert_token_num_type == 1, "expert_token_num_type must be 1 (counts)", expert_token_num_type)
    require(op, idx_type == 0, "idx_type must be 0 (gather)", idx_type)
    if tokens_dtype is not None:
        raise unsupported(op, "argument tokens_dtype")
    if per_token_scales is not None:
        require_dtype(op, "per_token_scales", per_token_scales, (torch.float32,))
        require_shape(op, "per_token_scales", per_token_scales, (rows,))
    counts = table.long()
    require(op, int(counts.min()) >= 0 if counts.numel() else True, "counts must not be negative", counts.tolist())
    require(op, int(counts.sum()) == rows, f"the counts must sum to the {rows} rows of tokens", int(counts.sum()))

    experts = torch.arange(counts.shape[1]).repeat(counts.shape[0]).repeat_interleave(counts.reshape(-1))
    source = experts.sort(stable=True).indices
    scales = poison((rows,), torch.float32) if per_token_scales is None else per_token_scales[source]
    return tokens[source], scales, source.int(), counts.sum(dim=0).to(table.dtype)
