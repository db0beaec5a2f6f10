# SPDX-License-Identifier: Apache-2.0
"""Routing of DeepSeek-V3's kind (sigmoid scores, a selection bias, groups of experts, a factor) in one operator.

What the operator does not take is left to whoever asked: ``takes`` says so. Other routing is ``router_ops.py``'s.
"""

from __future__ import annotations

import torch
import torch_npu

# npu_moe_gating_top_k (op-plugin reference and the wheel's documentation).
MAX_EXPERTS = 2048
"""Also of all groups together, each rounded up to ``GROUP_ALIGNMENT`` experts."""
GROUP_ALIGNMENT = 32
MIN_GROUP = 3
"""Experts of a group."""
SIGMOID = 1
BEST, TWO_BEST = 0, 1
"""What a group's score is: that of its best expert, or the sum of its two best."""


def takes(experts: int, top_k: int, groups: int = 1, kept: int = 1) -> bool:
    """Whether the operator chooses ``top_k`` of ``experts``, out of the ``kept`` best of ``groups`` groups."""
    if groups < 1 or experts % groups:
        return False
    size = experts // groups
    padded = -(-size // GROUP_ALIGNMENT) * GROUP_ALIGNMENT * groups
    return size >= MIN_GROUP and padded <= MAX_EXPERTS and 1 <= kept <= groups and 1 <= top_k <= size * kept


def without_nan(logits: torch.Tensor) -> torch.Tensor:
    """``logits`` with the lowest number for a NaN, and the outermost for infinities, whose softmax is one.

    Rows that pad a graph may hold either: which ids a device returns for them is not documented.
    """
    return logits.nan_to_num(nan=torch.finfo(logits.dtype).min)


def sigmoid_top_k(
    logits: torch.Tensor,
    top_k: int,
    selection_bias: torch.Tensor | None = None,
    scaling_factor: float = 1.0,
    groups: int = 1,
    kept: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoid per expert in float32, then the ``top_k`` largest of the ``kept`` best groups; numbers as ``takes`` has them.

    A NaN counts as a score of 0, of its expert alone.

    Args:
        logits: ``[T, E]``, any float dtype.
        selection_bias: ``[E]``; added to the scores for choosing only. With it a group's score is the sum of its two best
            experts', without it that of the best, as in vLLM's router.
        scaling_factor: multiplies the weights, which sum to 1 before.

    Returns:
        Weights float32 ``[T, top_k]`` and expert ids int32 ``[T, top_k]``, best first, the lower id among equals.
    """
    if not logits.shape[0]:
        return logits.new_empty(0, top_k, dtype=torch.float32), logits.new_empty(0, top_k, dtype=torch.int32)
    weights, ids, _ = torch_npu.npu_moe_gating_top_k(
        without_nan(logits.float()),
        top_k,
        bias=None if selection_bias is None else selection_bias.float(),
        k_group=kept,
        group_count=groups,
        group_select_mode=BEST if selection_bias is None else TWO_BEST,
        norm_type=SIGMOID,
        routed_scaling_factor=scaling_factor,
    )
    return weights, ids
