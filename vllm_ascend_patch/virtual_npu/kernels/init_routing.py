# SPDX-License-Identifier: Apache-2.0
"""Sorting token copies by expert on one rank: ``npu_moe_init_routing`` (v1, v2) and ``npu_moe_compute_expert_tokens``.

Bringing the rows back is finalize_routing.py's and permute.py's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from .quantise import quantise_rows

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MAX_EXPERTS = 10240
MAX_EXPERTS_KEY_VALUE = 5120


@dataclass(frozen=True)
class _Sorted:
    """Copies whose expert lies in [first, last), sorted by expert and stably by position."""

    positions: torch.Tensor  # flat index t * K + k of each kept copy, in output order
    experts: torch.Tensor  # expert of each kept copy, ascending
    counts: torch.Tensor  # copies per expert of the range


def _sort(expert_idx: torch.Tensor, first: int, last: int) -> _Sorted:
    flat = expert_idx.reshape(-1).long()
    kept = torch.nonzero((flat >= first) & (flat < last)).squeeze(1)
    experts, order = flat[kept].sort(stable=True)
    return _Sorted(kept[order], experts, torch.bincount(experts - first, minlength=last - first))


def _token_numbers(route: _Sorted, kind: int, first: int, expert_num: int) -> torch.Tensor:
    """0 prefix sums, 1 counts, 2 (expert, count) of the experts that have any, ended by (0, 0)."""
    if kind == 0:
        return route.counts.cumsum(0)
    if kind == 1:
        return route.counts
    pairs = poison((expert_num, 2), torch.int64)
    used = torch.nonzero(route.counts).squeeze(1)
    pairs[: len(used)] = torch.stack((used + first, route.counts[used]), dim=1)
    if len(used) < expert_num:
        pairs[len(used)] = 0
    return pairs


def moe_init_routing_v2(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    x_dtype: object = ABSENT,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One copy of each token per chosen expert of the active range, sorted by expert.

    Args:
        x: ``[T, H]`` fp16, bf16, fp32 or (``quant_mode=-1`` only) int8.
        expert_idx: ``[T, K]`` int32 in ``[0, expert_num)``.
        scale: ``quant_mode=-1``: float32 ``[T]``, travels with its token; ``1``: smooth factors float32
            ``[experts of the range, H]`` or ``[1, H]``.
        active_num: rows of the output; -1 or 0 is T * K. torch_npu 2.7.1 demands T * K.
        active_expert_range: ``[first, last)``; empty is all experts (2.13 only).
        quant_mode: -1 none, 1 dynamic int8 per row.
        row_idx_type: 0 gather: entry ``t * K + k`` is its output row, or -1; 1 scatter: entry i is the copy in row i.

    Returns:
        expanded_x ``[rows, H]``, expanded_row_idx int32 ``[T * K]``, expert token numbers int64, expanded_scale float32
        ``[rows]``. Rows past the number of kept copies are unwritten.
    """
    op = "npu_moe_init_routing_v2"
    old_wheel = x_dtype is ABSENT
    require_dim(op, "x", x, 2)
    require_dim(op, "expert_idx", expert_idx, 2)
    require_dtype(op, "x", x, (*FLOATS, torch.int8))
    require_dtype(op, "expert_idx", expert_idx, (torch.int32,))
    tokens, hidden = x.shape
    k = expert_idx.shape[1]
    copies = tokens * k
    require(op, expert_idx.shape[0] == tokens, f"expert_idx must have the {tokens} rows of x", expert_idx.shape[0])
    if x_dtype is not ABSENT and x_dtype is not None:
        raise unsupported(op, "argument x_dtype")
    if drop_pad_mode != 0:
        raise unsupported(op, f"drop_pad_mode {drop_pad_mode}")
    if quant_mode not in (-1, 1):
        raise unsupported(op, f"quant_mode {quant_mode}")
    require(op, offset is None, "offset must be None unless the quantisation is static", "a tensor")
    require(op, expert_tokens_num_type in (0, 1, 2), "expert_tokens_num_type must be 0, 1 or 2", expert_tokens_num_type)
    require(op, row_idx_type in (0, 1), "row_idx_type must be 0 or 1", row_idx_type)
    most = MAX_EXPERTS_KEY_VALUE if expert_tokens_num_type == 2 else MAX_EXPERTS
    require(op, 0 < expert_num <= most, f"expert_num must be in (0, {most}]", expert_num)
    require(op, active_num >= -1, "active_num must be at least -1", active_num)
    limits = list(active_expert_range)
    if old_wheel:
        require(op, len(limits) == 2, "active_expert_range must be [first, last) with torch_npu 2.7.1", limits)
        require(op, expert_tokens_num_flag, "expert_tokens_num_flag must be True with torch_npu 2.7.1", False)
        kind = expert_tokens_num_type
        require(op, kind in (1, 2), "expert_tokens_num_type must be 1 or 2 with torch_npu 2.7.1", kind)
        require(op, active_num == copies, f"active_num must be T * K = {copies} with torch_npu 2.7.1", active_num)
    first, last = limits or (0, expert_num)
    legal = 0 <= first < last <= expert_num
    require(op, legal, f"active_expert_range must be increasing and within [0, {expert_num}]", limits)
    require_ids(op, "expert_idx", expert_idx, expert_num)
    if quant_mode == 1:
        require_dtype(op, "x with quant_mode 1", x, FLOATS)
    if scale is not None:
        require_dtype(op, "scale", scale, (torch.float32,))
        if quant_mode == -1:
            require_shape(op, "scale without quantisation", scale, (tokens,))
        else:
            for_all = not old_wheel and scale.dim() == 2 and scale.shape[0] == 1  # the 2.7.1 wheel's meta refuses that
            require_shape(op, "scale with dynamic quantisation", scale, (1 if for_all else last - first, hidden))

    route = _sort(expert_idx, first, last)
    rows = copies if active_num <= 0 else min(active_num, copies)
    positions = route.positions[:rows]
    valid = len(positions)
    source = positions // k
    expanded_scale = poison((rows,), torch.float32)
    if quant_mode == 1:
        expanded = poison((rows, hidden), torch.int8)
        smooth = None
        if scale is not None:
            smooth = scale[0] if scale.shape[0] == 1 else scale[route.experts[:valid] - first]
        expanded[:valid], expanded_scale[:valid] = quantise_rows(x[source], smooth)
    else:
        expanded = poison((rows, hidden), x.dtype)
        expanded[:valid] = x[source]
        if scale is not None:
            expanded_scale[:valid] = scale[source]
    if row_idx_type == 0:
        row_idx = torch.full((copies,), -1, dtype=torch.int32)
        row_idx[positions] = torch.arange(valid, dtype=torch.int32)
    else:
        row_idx = poison((copies,), torch.int32)
        row_idx[:valid] = positions.int()
    if expert_tokens_num_flag:
        numbers = _token_numbers(route, expert_tokens_num_type, first, expert_num)
    else:
        numbers = poison((), torch.int64)
    return expanded, row_idx, numbers, expanded_scale


def moe_init_routing(
    x: torch.Tensor, row_idx: torch.Tensor, expert_idx: torch.Tensor, active_num: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Version 1: every copy is kept; ``row_idx`` numbers the copies column by column (``k * T + t``).

    Returns:
        expanded_x ``[min(T, active_num) * K, H]``; expanded_row_idx int32 ``[T * K]``, the output row of copy
        ``k * T + t``; the sorted experts int32 ``[T * K]``.
    """
    op = "npu_moe_init_routing"
    require_dim(op, "x", x, 2)
    require_dtype(op, "x", x, FLOATS)
    require(op, x.numel() < 2**24, "x must have fewer than 2**24 elements", x.numel())
    tokens = x.shape[0]
    for name, tensor in (("row_idx", row_idx), ("expert_idx", expert_idx)):
        require_dim(op, name, tensor, 2)
        require_dtype(op, name, tensor, (torch.int32,))
        require_shape(op, name, tensor, (tokens, expert_idx.shape[1]))
    require(op, active_num >= 0, "active_num must not be negative", active_num)
    require_ids(op, "row_idx", row_idx, row_idx.numel())
    experts, order = expert_idx.reshape(-1).sort(stable=True)
    copies = row_idx.reshape(-1)[order]
    destination = poison((copies.numel(),), torch.int32)
    destination[copies.long()] = torch.arange(copies.numel(), dtype=torch.int32)
    rows = min(tokens, active_num) * expert_idx.shape[1]
    return x[(copies[:rows] % tokens).long()] if tokens else x[:0], destination, experts


def moe_compute_expert_tokens(sorted_expert_for_source_row: torch.Tensor, num_expert: int) -> torch.Tensor:
    """How many rows belong to experts 0..i, for every i: int32 ``[num_expert]``.

    Args:
        sorted_expert_for_source_row: int32 ``[N]``, never falling, in ``[0, num_expert)``, N below 2**24.
        num_expert: 1 to 2048.
    """
    op = "npu_moe_compute_expert_tokens"
    experts = sorted_expert_for_source_row
    require_dim(op, "sorted_expert_for_source_row", experts, 1)
    require_dtype(op, "sorted_expert_for_source_row", experts, (torch.int32,))
    require(op, 0 < num_expert <= 2048, "num_expert must be in (0, 2048]", num_expert)
    require(
        op, experts.numel() < 2**24, "sorted_expert_for_source_row must have fewer than 2**24 rows", experts.numel()
    )
    require_ids(op, "sorted_expert_for_source_row", experts, num_expert)
    require(op, bool((experts.diff() >= 0).all()), "sorted_expert_for_source_row must never fall", "a falling pair")
    return torch.searchsorted(experts, torch.arange(num_expert, dtype=torch.int32), right=True, out_int32=True)
