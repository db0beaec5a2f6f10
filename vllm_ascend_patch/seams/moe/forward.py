# SPDX-License-Identifier: Apache-2.0
"""The MoE forward seam: every layer's forward runs with the communication method that the step agreed on.

The forward of the layer's runner is wrapped (of the layer itself in older releases), so gates, routing, shared experts and
expert load balancing stay upstream's.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from vllm_ascend_patch.core.moe.comm import make_method
from vllm_ascend_patch.core.moe.comm.base import MoECommMethod
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology

from .tokens import ForwardTokens, current_tokens

_methods: dict[tuple[str, Topology, ExpertPlacement], MoECommMethod[Any, Any]] = {}
_active: ForwardTokens | None = None


def forward_impl(original: Any, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """Run one layer with the step's method; anything that an exception interrupts is cleared.

    ``owner`` is the layer's runner, or the layer itself in releases without runners.
    """
    global _active
    hidden_states = kwargs.get("hidden_states")
    if hidden_states is None:
        hidden_states = args[parameters_of(original).index("hidden_states") - 1]
    _active = current_tokens(hidden_states.shape[0])
    try:
        return original(owner, *args, **kwargs)
    finally:
        _active = None


@cache
def parameters_of(function: Any) -> tuple[str, ...]:
    """Names of a function's parameters, in order."""
    return tuple(inspect.signature(function).parameters)


def output_is_reduced(original: Any, runner: Any) -> bool:
    """True for our methods: each returns complete sums, so upstream must not reduce them again."""
    from .method import NPUExperts

    method = runner._quant_method if hasattr(runner, "_quant_method") else runner.quant_method
    return isinstance(method, NPUExperts) or original(runner)


def running() -> bool:
    """Whether an MoE layer's patched forward is on the stack: its experts bring tokens to their ranks themselves."""
    return _active is not None


def active_tokens() -> ForwardTokens:
    """The token counts of the forward that the running layer belongs to."""
    if _active is None:
        raise RuntimeError(
            "an MoE layer ran outside the patched forward: the patch 'moe-forward' is not applied "
            "(see: python -m vllm_ascend_patch doctor)"
        )
    return _active


def method(name: str, layout: Topology, placement: ExpertPlacement) -> MoECommMethod[Any, Any]:
    """The method object for a layer, made once per name, topology and placement."""
    key = (name, layout, placement)
    if key not in _methods:
        _methods[key] = make_method(name, layout, placement)
    return _methods[key]
