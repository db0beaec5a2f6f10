# SPDX-License-Identifier: Apache-2.0
"""Carries what the ranks agreed on for a forward step from vLLM's forward context to the MoE layers.

vLLM asks the platform for additional fields on every forward, real or dummy, once the token counts of all data-parallel
ranks are known; this is where the step's communication method is chosen.
"""

from __future__ import annotations

from typing import Any

from vllm_ascend_patch.core.moe.step import MoEStep

FIELD = "vllm_ascend_patch_step"


def forward_context_fields(**context: Any) -> dict[str, Any]:
    """Fields for ``ForwardContext.additional_kwargs``; ``context`` is what vLLM passes to the platform hook."""
    num_tokens = context.get("num_tokens")
    if num_tokens is None:
        return {}
    across_dp = context.get("num_tokens_across_dp")
    tokens = (int(num_tokens),) if across_dp is None else tuple(across_dp.tolist())
    return {FIELD: MoEStep(tokens, active_tokens=int(num_tokens), method="allgather")}


def current_step() -> MoEStep:
    """The step of the forward that is running."""
    from vllm.forward_context import get_forward_context

    step = get_forward_context().additional_kwargs.get(FIELD)
    if step is None:
        raise RuntimeError(
            "an MoE layer ran without the step's token counts: the forward context was not made through the NPU platform"
        )
    return step
