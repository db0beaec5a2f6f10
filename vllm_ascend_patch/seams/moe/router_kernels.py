# SPDX-License-Identifier: Apache-2.0
"""Supplies the router kernels that an out-of-tree device lacks in stock vLLM: top-k, grouped top-k, and the map to expert
replicas.

Only adapts call signatures; the arithmetic is ``core/moe/router_ops.py``. All arguments are bound by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_patch.seams.by_name import parameters_of

if TYPE_CHECKING:
    import torch


def topk_softmax(
    original: Any,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
    **_unused: Any,
) -> None:
    """Write ``topk_weights`` and ``topk_ids`` in place, as upstream's CUDA kernel does."""
    from vllm_ascend_patch.core.moe.router_ops import top_k_softmax

    weights, ids = top_k_softmax(gating_output, topk_ids.shape[-1], renormalize, e_score_correction_bias)
    topk_weights.copy_(weights)
    topk_ids.copy_(ids)


def topk_sigmoid(
    original: Any,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    **_unused: Any,
) -> None:
    """Write ``topk_weights`` and ``topk_ids`` in place, as upstream's CUDA kernel does."""
    from vllm_ascend_patch.core.moe.router_ops import top_k_sigmoid

    weights, ids = top_k_sigmoid(
        gating_output, topk_ids.shape[-1], renormalize, e_score_correction_bias, routed_scaling_factor
    )
    topk_weights.copy_(weights)
    topk_ids.copy_(ids)


def grouped_topk(original: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids of upstream's grouped router: one operator for normalised sigmoids, else upstream's, without NaN."""
    from vllm_ascend_patch.core.moe import gating

    given = dict(zip(parameters_of(original), args, strict=False)) | kwargs
    logits, top_k = given["gating_output"], given["topk"]
    groups, kept = given.get("num_expert_group", 0), given.get("topk_group", 0)
    normalised_sigmoid = given.get("scoring_func") == "sigmoid" and given["renormalize"]
    if not (normalised_sigmoid and gating.takes(logits.shape[1], top_k, groups, kept)):
        return original(**(given | {"gating_output": gating.without_nan(logits)}))
    factor = given.get("routed_scaling_factor", 1.0)
    return gating.sigmoid_top_k(logits, top_k, given.get("e_score_correction_bias"), factor, groups, kept)


def map_to_physical(
    original: Any,
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor | None = None,
    num_unpadded_tokens: torch.Tensor | None = None,
    indices_type: torch.dtype | None = None,
) -> torch.Tensor:
    """Physical expert ids, and the load count, which older releases always take: upstream's stand-in on other devices
    returns its input unchanged."""
    from vllm_ascend_patch.core.moe.router_ops import map_to_replicas, record_load

    physical = map_to_replicas(topk_ids, logical_to_physical_map, logical_replica_count)
    enabled = expert_load_view.new_ones(1) if record_enabled is None else record_enabled
    record_load(expert_load_view, physical, enabled, num_unpadded_tokens)
    return physical if indices_type is None else physical.to(indices_type)
