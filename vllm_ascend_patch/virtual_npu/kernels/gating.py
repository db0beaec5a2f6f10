# SPDX-License-Identifier: Apache-2.0
"""Choosing experts: ``npu_moe_gating_top_k``, ``npu_moe_gating_top_k_softmax`` (v1 and v2). No token is moved here."""

from __future__ import annotations

import torch

from .limits import poison, require, require_dim, require_dtype, require_shape, unsupported

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest of each row, largest first, the lower index first among equals."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grouped top-k of router logits.

    The bias takes part in the choice only. Sigmoid weights are renormalised over the k chosen, softmax weights are not;
    both are multiplied by ``routed_scaling_factor``.

    Args:
        x: router logits ``[T, E]``, E at most 2048.
        bias: ``[E]``, same dtype as x.
        norm_type: 0 softmax, 1 sigmoid.
        group_select_mode: score of a group: 0 its maximum, 1 the sum of its two largest.

    Returns:
        weights ``[T, k]`` of x's dtype; expert ids ``[T, k]`` int32; the norm ``[T, E]`` float32, written only if
        ``out_flag``.
    """
    op = "npu_moe_gating_top_k"
    require_dim(op, "x", x, 2)
    require_dtype(op, "x", x, FLOATS)
    tokens, experts = x.shape
    if input_ids is not None or tid2eid is not None:
        raise unsupported(op, "hash routing (input_ids, tid2eid)")
    require(op, experts <= 2048, "the number of experts must be at most 2048", experts)
    if bias is not None:
        require_shape(op, "bias", bias, (experts,))
        require(op, bias.dtype == x.dtype, f"bias must have the dtype of x ({x.dtype})", bias.dtype)
    require(op, norm_type in (0, 1), "norm_type must be 0 (softmax) or 1 (sigmoid)", norm_type)
    require(op, group_select_mode in (0, 1), "group_select_mode must be 0 or 1", group_select_mode)
    require(op, renorm == 0, "renorm must be 0", renorm)
    require(op, group_count > 0, "group_count must be positive", group_count)
    require(op, experts % group_count == 0, f"group_count must divide the {experts} experts", group_count)
    per_group = experts // group_count
    require(op, per_group > 2, "experts per group must be more than 2", per_group)
    padded = (per_group + 31) // 32 * 32 * group_count
    require(op, padded <= 2048, "experts per group, rounded up to 32, times group_count must be at most 2048", padded)
    require(op, 1 <= k_group <= group_count, f"k_group must be in [1, group_count={group_count}]", k_group)
    require(
        op, 1 <= k <= per_group * k_group, f"k must be in [1, {per_group * k_group}] (experts of k_group groups)", k
    )

    logits = x.float()
    norm = logits.sigmoid() if norm_type == 1 else logits.softmax(dim=-1)
    scores = norm if bias is None else norm + bias.float()
    if group_count > 1:
        grouped = scores.view(tokens, group_count, per_group)
        of_group = grouped.amax(-1) if group_select_mode == 0 else grouped.topk(2, dim=-1).values.sum(-1)
        chosen = torch.zeros(tokens, group_count, dtype=torch.bool).scatter_(1, _top_k(of_group, k_group), True)
        scores = grouped.masked_fill(~chosen.unsqueeze(-1), float("-inf")).view(tokens, experts)
    ids = _top_k(scores, k)
    weights = norm.gather(1, ids)
    if norm_type == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = weights * routed_scaling_factor
    shown = norm if out_flag else poison((tokens, experts), torch.float32)
    return weights.to(x.dtype), ids.int(), shown


def _check_softmax(op: str, x: torch.Tensor, finished: torch.Tensor | None, k: int) -> None:
    require_dim(op, "x", x, 2, 3)
    require_dtype(op, "x", x, FLOATS)
    require(op, 0 < k <= x.shape[-1], f"k must be in [1, {x.shape[-1]}] (the number of experts)", k)
    require(op, k <= 1024, "k must be at most 1024", k)
    if finished is not None:
        require_dtype(op, "finished", finished, (torch.bool,))
        require_shape(op, "finished", finished, x.shape[:-1])


def moe_gating_top_k_softmax(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax over all experts, then top-k, not renormalised.

    Args:
        x: router logits ``[..., E]``, 2-D or 3-D.
        finished: bool ``x.shape[:-1]``; a finished row gets expert id E, which belongs to nobody.

    Returns:
        weights of x's dtype, expert ids int32 and source rows int32, all ``x.shape[:-1] + [k]``. The source row of
        (token, j) is ``j * tokens + token``: column by column, as ``npu_moe_init_routing`` wants it.
    """
    op = "npu_moe_gating_top_k_softmax"
    _check_softmax(op, x, finished, k)
    probabilities = x.float().softmax(dim=-1)
    ids = _top_k(probabilities, k)
    weights = probabilities.gather(-1, ids)
    if finished is not None:
        ids = ids.masked_fill(finished.unsqueeze(-1), x.shape[-1])
    rows = x.shape[:-1].numel()
    source = torch.arange(rows * k, dtype=torch.int32).view(k, rows).t().reshape(ids.shape).contiguous()
    return weights.to(x.dtype), ids.int(), source


def moe_gating_top_k_softmax_v2(
    x: torch.Tensor,
    *,
    k: int = 1,
    finished: torch.Tensor | None = None,
    renorm: int | None = 0,
    output_softmax: bool | None = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As version 1; ``renorm=1`` takes the top-k first and the softmax over those k.

    Returns:
        weights, ids int32, and the softmax ``[T, E]`` float32 if ``renorm == 0 and output_softmax``, else ``[0]``
    """
    op = "npu_moe_gating_top_k_softmax_v2"
    _check_softmax(op, x, finished, k)
    require(op, renorm in (0, 1), "renorm must be 0 or 1", renorm)
    logits = x.float()
    ids = _top_k(logits, k)
    probabilities = logits.softmax(dim=-1)
    weights = logits.gather(-1, ids).softmax(dim=-1) if renorm else probabilities.gather(-1, ids)
    if finished is not None:
        ids = ids.masked_fill(finished.unsqueeze(-1), x.shape[-1])
    shown = probabilities if renorm == 0 and output_softmax else probabilities.new_empty(0)
    return weights.to(x.dtype), ids.int(), shown
