# SPDX-License-Identifier: Apache-2.0
"""One mixture-of-experts layer: the same five steps for every communication method."""

from __future__ import annotations

from typing import Any

import torch

from vllm_ascend_patch.core.moe.comm import METHODS
from vllm_ascend_patch.core.moe.comm.base import MoECommMethod, MoEInput

from .errors import MoEConfigError
from .experts import ExpertWeights, expert_mlp
from .step import MoEStep


def fused_moe(
    method: MoECommMethod[Any, Any],
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    weights: ExpertWeights,
    step: MoEStep,
    *,
    apply_router_weight_on_input: bool = False,
) -> torch.Tensor:
    """Run the routed experts on this rank's tokens.

    Args:
        method: how tokens travel.
        hidden_states: ``[T, H]``, T as agreed in ``step``. Not modified.
        topk_weights: ``[T, K]``, converted to fp32.
        topk_ids: ``[T, K]`` integer, physical expert ids, distinct within a row.
        weights: this rank's experts.
        step: what the ranks agreed on.
        apply_router_weight_on_input: scale the token before its expert instead of the result after (top-1 only).

    Returns:
        ``[T, H]`` in the dtype of ``hidden_states``: the complete sum over all experts, whatever the method; zero
        in the rows past the active tokens.

    Raises:
        MoEConfigError: shapes that contradict ``step`` or ``weights``, or a method that cannot run captured.
    """
    _check(method, hidden_states, topk_weights, topk_ids, weights, step)
    topk_weights = topk_weights.to(torch.float32)
    if apply_router_weight_on_input:
        if topk_ids.shape[1] != 1:
            raise MoEConfigError(
                f"router weights on the input need top-1 routing, found top-{topk_ids.shape[1]}: an expert's result is "
                "not linear in its input, so several weights cannot be moved to it"
            )
        hidden_states = hidden_states * topk_weights.to(hidden_states.dtype)
        topk_weights = torch.ones_like(topk_weights)
    inputs = MoEInput(hidden_states, topk_weights, topk_ids.to(torch.int32), weights.quantized, weights.fused)
    prepared = method.prepare(inputs, step)
    dispatched = method.dispatch(prepared)
    expert_output = expert_mlp(dispatched.rows, dispatched.counts, weights, dispatched.row_scales, dispatched.sums)
    combined = method.combine(dispatched, expert_output)
    return method.finalize(prepared, combined)


def _check(
    method: MoECommMethod[Any, Any],
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    weights: ExpertWeights,
    step: MoEStep,
) -> None:
    step.check(method.topology, hidden_states)
    if step.captured and not METHODS[method.name].capturable:
        raise MoEConfigError(
            f"the {method.name} method reads the device from the host and cannot run in a captured graph"
        )
    rows, hidden_size = hidden_states.shape
    if topk_ids.shape != topk_weights.shape or topk_ids.dim() != 2 or topk_ids.shape[0] != rows:
        raise MoEConfigError(
            f"router output does not match {rows} tokens: weights {tuple(topk_weights.shape)}, "
            f"ids {tuple(topk_ids.shape)}"
        )
    if hidden_size != weights.hidden_size or weights.num_local != method.placement.num_local:
        raise MoEConfigError(
            f"{weights.num_local} experts of hidden size {weights.hidden_size} do not match tokens of hidden size "
            f"{hidden_size} and a placement of {method.placement.num_local} experts on this rank"
        )
    if hidden_states.dtype != weights.output_dtype:
        raise MoEConfigError(f"experts compute in {weights.output_dtype}, the tokens are {hidden_states.dtype}")
