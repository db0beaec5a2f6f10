# SPDX-License-Identifier: Apache-2.0
"""Dummy steps: idle, profiling, warm-up and capture. They send the same vector through the same function as busy ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of

from .drafts import plan_for_dummy


def dummy_run(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """A dummy forward: idle, profiling, warm-up or capture. Sends a vector like any other."""
    return run_dummy(original, runner, args, kwargs)


def run_dummy(
    original: Callable[..., Any],
    runner: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prepare: Callable[[bool, dict[str, Any]], dict[str, Any]] = lambda idle, bound: {},
) -> Any:
    """Run a dummy forward that the ranks agree on where upstream asks.

    Args:
        original: upstream's ``_dummy_run``.
        runner: the model runner.
        args: upstream's arguments after the runner.
        kwargs: those by name.
        prepare: called before upstream's code with whether this is an idle step, and with the arguments by name; returns
            those to add or to change.
    """
    state = serving.entering(runner)
    session = state.session
    if session is None:
        return original(runner, *args, **kwargs)
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    num_tokens = bound["num_tokens"]
    # An engine of an external launcher runs its idle step from inside execute_model instead of the worker.
    idle = state.step.idle or session.channel.progress.phase == "prepare"
    session.expect_dummy(idle, lambda: plan_for_dummy(runner, num_tokens) if idle else None)
    session.channel.progress.enter(_phase(idle, bound), blocking=True)
    try:
        with trace.span("dummy", {"tokens": num_tokens, "idle": idle} if trace.enabled() else None):
            return original(runner, **(bound | prepare(idle, bound)))
    except Exception as error:
        session.abandon(error)
        raise
    finally:
        session.end_dummy()
        session.channel.progress.enter(
            "between steps" if session.channel.progress.serving else "start-up", blocking=False
        )


def _phase(idle: bool, bound: dict[str, Any]) -> str:
    if idle:
        return "idle step"
    if bound.get("is_profile"):
        return "profiling"
    return "graph capture" if bound.get("is_graph_capturing") else "warm-up"


def execute_dummy_batch(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    """The step of a rank without work."""
    step = serving.entering(worker.model_runner).step
    before, step.idle = step.idle, True
    try:
        return original(worker, *args, **kwargs)
    finally:
        step.idle = before
