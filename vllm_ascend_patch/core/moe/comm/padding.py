# SPDX-License-Identifier: Apache-2.0
"""Rows without a token: how they are filled before anything is sent. Local work only, no collectives."""

from __future__ import annotations

import torch

from vllm_ascend_patch.core.moe.constants import spread_ids, zero_rows

from .base import MoEInput


def clean_rows(
    inputs: MoEInput, num_experts: int, rows: int, active: int, mask: torch.Tensor | None = None
) -> MoEInput:
    """Exactly ``rows`` rows, of which only the active ones carry content.

    Args:
        inputs: T rows.
        num_experts: E, the range of valid expert ids.
        rows: rows wanted, at least the active ones; rows past T are appended.
        active: real tokens, the first rows. Ignored when a mask is given.
        mask: bool ``[T]``, True for real tokens; for captured graphs, where ``active`` would be frozen.

    Returns:
        Inputs with ``[rows, ...]`` tensors, to be read only.
        Inactive rows: hidden states 0, router weights 0, ids from ``spread_ids``.
    """
    if mask is not None:
        return _clean_by_mask(inputs, num_experts, rows, mask)
    hidden, weights, ids = inputs.hidden_states, inputs.topk_weights, inputs.topk_ids
    if active == rows == hidden.shape[0]:
        return inputs
    empty = rows - active
    spread = spread_ids(empty, ids.shape[1], num_experts, ids.device)
    return MoEInput(
        _followed_by(zero_rows(empty, hidden), hidden, active),
        _followed_by(zero_rows(empty, weights), weights, active),
        _followed_by(spread, ids, active),
        inputs.quantize,
        inputs.sums,
    )


def _followed_by(tail: torch.Tensor, tensor: torch.Tensor, active: int) -> torch.Tensor:
    """The active rows of ``tensor``, then ``tail``; one of the two itself where the other has no rows."""
    if active == 0:
        return tail
    head = tensor[:active]
    return torch.cat([head, tail]) if tail.shape[0] else head


def _clean_by_mask(inputs: MoEInput, num_experts: int, rows: int, mask: torch.Tensor) -> MoEInput:
    inactive = ~mask.unsqueeze(1)
    total = inputs.hidden_states.shape[0]
    spread = spread_ids(total, inputs.top_k, num_experts, inputs.topk_ids.device)
    cleaned = MoEInput(
        inputs.hidden_states.masked_fill(inactive, 0),
        inputs.topk_weights.masked_fill(inactive, 0),
        torch.where(inactive, spread, inputs.topk_ids),
        inputs.quantize,
        inputs.sums,
    )
    return cleaned if rows == total else clean_rows(cleaned, num_experts, rows, total)
