# SPDX-License-Identifier: Apache-2.0
"""Keeps the rank's phase up to date for the watchdog and the trace, and reports a failing step to the other ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.dp.current import current_session


def _in_phase(phase: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    session = current_session()
    if session is None:
        return original(*args, **kwargs)
    progress = session.channel.progress
    progress.enter(phase, blocking=True)
    try:
        return original(*args, **kwargs)
    except Exception as error:
        session.abandon(error)
        raise
    finally:
        progress.enter("between steps", blocking=False)


def execute_model(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A step up to its logits."""
    return _in_phase("prepare", original, args, kwargs)


def sample_tokens(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Sampling, and the drafter's forwards."""
    with trace.span("sample"):
        return _in_phase("sample", original, args, kwargs)


def model_forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The model's forward, as the host sees it: on a device, the time to launch it."""
    if not trace.enabled():
        return original(*args, **kwargs)
    start = time.perf_counter_ns()
    try:
        return original(*args, **kwargs)
    finally:
        trace.complete("forward", start, time.perf_counter_ns(), _forward_details())


def _forward_details() -> dict[str, Any]:
    """Token counts and what the forward context says about the step."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return {}
    context = get_forward_context()
    details: dict[str, Any] = {"graph_mode": context.cudagraph_runtime_mode.name}
    tokens = getattr(context.dp_metadata, "num_tokens_across_dp_cpu", None)
    if tokens is not None:
        details["tokens_per_rank"] = tokens.tolist()
    for value in getattr(context, "additional_kwargs", {}).values():
        methods = getattr(value, "methods", None)
        if methods is not None:
            details["method"] = ",".join(sorted(methods() if callable(methods) else methods))
    return details
