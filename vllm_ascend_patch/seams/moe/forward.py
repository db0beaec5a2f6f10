# SPDX-License-Identifier: Apache-2.0
"""The MoE forward seam: every layer's forward runs with the communication method that the step agreed on.

The forward of the layer's runner is wrapped (of the layer itself in older releases), so gates, routing, shared experts and
expert load balancing stay upstream's.
"""

from __future__ import annotations

from typing import Any

from vllm_ascend_patch.core.moe.forward_tokens import ForwardTokens
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of

from .tokens import FIELD
from .tokens_before_0_14 import forward_tokens


def forward_impl(original: Any, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """Run one layer with the step's method; anything that an exception interrupts is cleared.

    ``owner`` is the layer's runner, or the layer itself in releases without runners.
    """
    hidden_states = kwargs.get("hidden_states")
    if hidden_states is None:
        hidden_states = args[parameters_of(original).index("hidden_states") - 1]
    step = serving.current().step
    step.layer = current_tokens(hidden_states.shape[0])
    try:
        return original(owner, *args, **kwargs)
    finally:
        step.layer = None


def current_tokens(rows: int) -> ForwardTokens:
    """The token counts of the forward that is running; ``rows`` are those of the asking layer's input."""
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    fields = getattr(context, "additional_kwargs", None)
    if fields is None:
        return forward_tokens(context, rows)
    tokens = fields.get(FIELD)
    if tokens is None:
        raise RuntimeError(
            "an MoE layer ran without the step's token counts: the forward context was not made through the NPU platform"
        )
    return tokens


def running() -> bool:
    """Whether an MoE layer's patched forward is on the stack: its experts bring tokens to their ranks themselves."""
    return serving.current().step.layer is not None


def active_tokens() -> ForwardTokens:
    """The token counts of the forward that the running layer belongs to."""
    layer = serving.current().step.layer
    if layer is None:
        raise RuntimeError(
            "an MoE layer ran outside the patched forward: the patch 'moe-forward' is not applied "
            "(see: python -m vllm_ascend_patch doctor)"
        )
    return layer
