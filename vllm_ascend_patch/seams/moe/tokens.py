# SPDX-License-Identifier: Apache-2.0
"""Carries what the ranks agreed on for a forward step from vLLM's forward context to the MoE layers.

vLLM asks the platform for additional fields on every forward, real or dummy, once the token counts of all data-parallel
ranks are known (see ``tokens_before_0_14.py`` for releases that do not). Everything here is host side and the same on every
rank, except how many of this rank's rows are real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_patch.core.moe.active_mask import ActiveMask
from vllm_ascend_patch.core.moe.forward_tokens import ForwardTokens
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import largest_graph

if TYPE_CHECKING:
    import torch

FIELD = "vllm_ascend_patch_step"


def forward_context_fields(**context: Any) -> dict[str, Any]:
    """Fields for ``ForwardContext.additional_kwargs``; ``context`` is what vLLM passes to the platform hook.

    Raises:
        DPSyncError: the forward does not run what the ranks agreed on.
    """
    num_tokens = context.get("num_tokens")
    if num_tokens is None:
        return {}
    state = serving.current()
    across_dp = context.get("num_tokens_across_dp")
    per_dp_rank = (int(num_tokens),) if across_dp is None else tuple(across_dp.tolist())
    microbatched = context.get("ubatch_slices") is not None
    agreement, count = None, None
    if state.session is not None:
        counters = state.session.channel.counters
        count = counters.count_moe_step if counters is not None else None
        agreement = state.session.check_forward(per_dp_rank if len(per_dp_rank) > 1 and not microbatched else None)
    active = _own_tokens(context) if agreement is None else agreement.active_tokens[_dp_rank(context)]
    graph_mode = context.get("cudagraph_runtime_mode")
    whole = state.step.tasks is not None  # V2 says nothing of a graph while it captures a whole step
    if not whole and (graph_mode is None or graph_mode.name == "NONE"):
        return {FIELD: ForwardTokens(per_dp_rank, active, captured=False, count=count)}
    mask = _mask(state.moe, context["vllm_config"], active, int(num_tokens))
    tokens = ForwardTokens(per_dp_rank, active, captured=True, mask=mask, count=count)
    for selector in state.moe.selectors.values():  # a replay runs no layer's Python, which would ask otherwise
        tokens.step(selector)
    return {FIELD: tokens}


def _mask(moe: serving.MoELayers, config: Any, active: int, rows: int) -> torch.Tensor | None:
    """The rows of this forward in the mask that all graphs share, brought up to date on the current stream."""
    if not any(selector.facts.ep_size > 1 or selector.facts.dp_size > 1 for selector in moe.selectors.values()):
        return None
    if moe.mask is None:
        moe.mask = ActiveMask(largest_graph(config.compilation_config), "npu")
    moe.mask.set(active)
    return moe.mask.first(rows)


def _own_tokens(context: dict[str, Any]) -> int:
    """Tokens of requests in this forward, without data parallelism; attention knows them when a graph has padded."""
    metadata = context.get("attn_metadata")
    first = next(iter(metadata.values()), None) if isinstance(metadata, dict) else None
    return min(int(context["num_tokens"]), getattr(first, "num_tokens", int(context["num_tokens"])))


def _dp_rank(context: dict[str, Any]) -> int:
    rank = context.get("dp_rank")
    return context["vllm_config"].parallel_config.data_parallel_rank if rank is None else rank
