# SPDX-License-Identifier: Apache-2.0
"""Keeps the rank's phase up to date for the watchdog and the trace, and reports a failing step to the other ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import tokens_across_dp


def _in_phase(phase: str, original: Callable[..., Any], runner: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    session = serving.entering(runner).session
    if session is None:
        return original(runner, *args, **kwargs)
    progress = session.channel.progress
    progress.enter(phase, blocking=True)
    try:
        return original(runner, *args, **kwargs)
    except Exception as error:
        session.abandon(error)
        raise
    finally:
        progress.enter("between steps", blocking=False)


def execute_model(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """A step up to its logits."""
    return _in_phase("prepare", original, runner, args, kwargs)


def sample_tokens(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Sampling, and the drafter's forwards."""
    with trace.span("sample"):
        return _in_phase("sample", original, runner, args, kwargs)


def model_forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The model's forward, as the host sees it: on a device, the time to launch it."""
    if not trace.enabled():
        return original(*args, **kwargs)
    start = time.perf_counter_ns()
    try:
        return original(*args, **kwargs)
    finally:
        trace.complete("forward", start, time.perf_counter_ns(), _forward_details())


def trace_forwards(model: Any) -> None:
    """The same for releases that have no method for it: on the model itself."""
    starts: list[int] = []

    def begins(*_: Any) -> None:
        starts.append(time.perf_counter_ns())

    def ends(*_: Any) -> None:
        trace.complete("forward", starts.pop(), time.perf_counter_ns(), _forward_details())

    model.register_forward_pre_hook(begins)
    model.register_forward_hook(ends)


def _forward_details() -> dict[str, Any]:
    """Token counts and what the forward context says about the step."""
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    mode = getattr(context, "cudagraph_runtime_mode", None)
    details: dict[str, Any] = {"graph_mode": mode.name} if mode is not None else {}
    tokens = tokens_across_dp(context.dp_metadata)
    if tokens is not None:
        details["tokens_per_rank"] = tokens.tolist()
    return details
