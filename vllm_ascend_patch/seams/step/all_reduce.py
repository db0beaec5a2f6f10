# SPDX-License-Identifier: Apache-2.0
"""vLLM's data-parallel all-reduce, answered from the step vector (releases from 0.11.1 on; `_run_ar` differs in its rows).

Also the dummy steps that end in the same function. Arguments are bound by name, so that one adapter serves all releases.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.dp import StepAgreement, Vote
from vllm_ascend_patch.core.dp.current import current_session, set_attention

from .drafts import plan_for_dummy


class VoteCapturedError(BaseException):
    """Leaves upstream's decision code at its all-reduce, with this rank's vote. Not an `Exception`: nothing between may
    catch it."""

    def __init__(self, vote: Vote) -> None:
        super().__init__(vote)
        self.vote = vote


_capturing = False
_idle = False


@functools.cache
def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's parameters, in order."""
    return tuple(inspect.signature(function).parameters)


def captured_vote(decide: Callable[..., Any], *args: Any, **kwargs: Any) -> Vote | None:
    """Call upstream's decision code up to its all-reduce and return what this rank would have sent there.

    Args:
        decide: a function that ends in `coordinate_batch_across_dp`; up to there it must have no side effect.

    Returns:
        None if it never came to an all-reduce (no data parallelism, or coordination is switched off).
    """
    global _capturing
    before, _capturing = _capturing, True
    try:
        decide(*args, **kwargs)
    except VoteCapturedError as captured:
        return captured.vote
    finally:
        _capturing = before
    return None


def run_ar(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of upstream's all-reduce. Returns int32 rows on the CPU, `[rows, dp_size]`, in upstream's order."""
    names = parameters_of(original)
    bound = dict(zip(names, args, strict=False)) | kwargs
    vote = Vote(
        tokens=int(bound["orig_num_tokens_per_ubatch"]),
        padded_tokens=int(bound["padded_num_tokens_per_ubatch"]),
        microbatch=bool(bound["should_ubatch"]),
        graph_mode=int(bound.get("cudagraph_mode", 0)),
        pad=bool(bound.get("should_dp_pad", False)),
    )
    if _capturing:
        raise VoteCapturedError(vote)
    session = current_session()
    if session is None:
        return original(*args, **kwargs)
    agreement = session.resolve(vote)
    session.channel.progress.enter("forward", blocking=True)
    rows = rows_for(names, agreement)
    return torch.frombuffer(array("i", chain.from_iterable(rows)), dtype=torch.int32).view(len(rows), -1)


def rows_for(names: tuple[str, ...], agreement: StepAgreement) -> list[tuple[int, ...]]:
    """The rows that upstream's post-processing of this release expects, encoding the agreement.

    Args:
        names: parameter names of the release's `_run_ar`; they tell which rows it has.
    """
    tokens, padded, microbatch, graph_mode = agreement.canonical_rows()
    rows = [tokens, padded, microbatch]
    if "should_dp_pad" in names:
        rows.append((int(agreement.padded_across_ranks),) * agreement.dp_size)
    if "cudagraph_mode" in names:
        rows.append(graph_mode)
    return rows


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
        prepare: called before upstream's code with whether this is an idle step, and with the arguments by name; returns
            keyword arguments to add.
    """
    set_attention(None)
    session = current_session()
    if session is None:
        return original(runner, *args, **kwargs)
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    num_tokens = bound["num_tokens"]
    # An engine of an external launcher runs its idle step from inside execute_model instead of the worker.
    idle = _idle or session.channel.progress.phase == "prepare"
    session.expect_dummy(idle, lambda: plan_for_dummy(runner, num_tokens) if idle else None)
    session.channel.progress.enter(_dummy_phase(idle, bound), blocking=True)
    try:
        with trace.span("dummy", {"tokens": num_tokens, "idle": idle} if trace.enabled() else None):
            return original(runner, *args, **(kwargs | prepare(idle, bound)))
    except Exception as error:
        session.abandon(error)
        raise
    finally:
        session.end_dummy()
        session.channel.progress.enter(
            "between steps" if session.channel.progress.serving else "start-up", blocking=False
        )


def _dummy_phase(idle: bool, bound: dict[str, Any]) -> str:
    if idle:
        return "idle step"
    if bound.get("is_profile"):
        return "profiling"
    return "graph capture" if bound.get("is_graph_capturing") else "warm-up"


def execute_dummy_batch(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    """The step of a rank without work."""
    with _idle_step():
        return original(worker, *args, **kwargs)


@contextlib.contextmanager
def _idle_step() -> Iterator[None]:
    global _idle
    before, _idle = _idle, True
    try:
        yield
    finally:
        _idle = before
