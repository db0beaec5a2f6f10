# SPDX-License-Identifier: Apache-2.0
"""The data-parallel agreement in the releases that decide nothing before they ask: each rank sends its token count.

Up to 0.11.0 through ``DPMetadata.num_tokens_across_dp``, once its inputs are prepared; in 0.11.1 and 0.11.2 through
``_run_ar`` (``all_reduce.py``) while they are. The step vector takes its place: announced before input preparation, handed
back where upstream asks. Padding stays upstream's: to a graph's size by each rank, then to the largest rank unless the
ranks run eager.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_ascend_patch.core.dp import GraphMode, Vote
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import has_graphs, largest_graph

from .batch import attention_of, scheduled_tokens
from .dummy import run_dummy


def prepare_inputs(original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    """Decide and post, then prepare inputs while the exchange is under way (up to 0.11.0)."""
    return _prepare(_vote, original, runner, scheduler_output, *args, **kwargs)


def prepare_inputs_with_rows(
    original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """The same for ``_run_ar``, which carries no graph mode, and pads the ranks once graphs are configured."""
    return _prepare(_vote_with_rows, original, runner, scheduler_output, *args, **kwargs)


def _prepare(
    vote_for: Callable[[Any, int, int], Vote],
    original: Callable[..., Any],
    runner: Any,
    scheduler_output: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    state = serving.entering(runner)
    session = state.session
    if session is None:
        return original(runner, scheduler_output, *args, **kwargs)
    try:
        attention = attention_of(runner, scheduler_output, scheduled_tokens(runner, scheduler_output))
        num_tokens = scheduler_output.total_num_scheduled_tokens
        vote = vote_for(runner, num_tokens, padded_for_graphs(runner, num_tokens))
        state.step.expected, state.step.agreed = vote, None
        session.announce(vote, attention.with_prefill)
        return original(runner, scheduler_output, *args, **kwargs)
    except Exception as error:
        session.abandon(error)
        raise


def dummy_run(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """A dummy forward (up to 0.11.0).

    Upstream's idle ranks would run eager whatever the others do, or find out by themselves. Here an idle rank learns first
    what the ranks agreed on, and replays the graph that upstream's dispatcher has for that many tokens, as they will. Where
    it has none, the idle rank runs as many rows as they: 0.11.0 pads the counts of a dummy step, but not its rows.
    """

    def prepare(idle: bool, bound: dict[str, Any]) -> dict[str, Any]:
        state = serving.current()
        vote = _vote(runner, bound["num_tokens"], bound["num_tokens"])
        state.step.expected, state.step.agreed = vote, None
        if not idle or state.session is None or not _has_graphs(runner):
            return {}
        agreement = state.step.agreed = state.session.resolve(vote)
        mode = _dispatched_mode(runner, agreement.max_tokens)
        rows = {"num_tokens": agreement.max_tokens} if mode.name == "NONE" else {}
        return {"cudagraph_runtime_mode": mode, **rows}

    return run_dummy(original, runner, args, kwargs, prepare)


def num_tokens_across_dp(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of upstream's all-reduce: int32 ``[dp size]`` on the CPU, the tokens of every rank."""
    state = serving.current()
    session, step = state.session, state.step
    if session is None:
        return original(*args, **kwargs)
    num_tokens = kwargs["num_tokens"] if "num_tokens" in kwargs else args[0]
    agreement, step.agreed = step.agreed, None
    if agreement is None:
        vote = step.expected
        if vote is None or vote.padded_tokens != num_tokens:
            vote = Vote(num_tokens, num_tokens)
        agreement = session.resolve(vote)
    session.channel.progress.enter("forward", blocking=True)
    return torch.tensor(agreement.padded_tokens, dtype=torch.int32)


def padded_for_graphs(runner: Any, num_tokens: int) -> int:
    """Rows that upstream runs ``num_tokens`` tokens with on this rank, before all ranks are padded to one size."""
    decide = getattr(runner, "_get_num_input_tokens", None)
    if decide is not None:
        return decide(num_tokens)
    if not _has_graphs(runner) or num_tokens > largest_graph(runner.vllm_config.compilation_config):
        return num_tokens
    return runner.vllm_config.pad_for_cudagraph(num_tokens)


def _vote(runner: Any, num_tokens: int, padded_tokens: int) -> Vote:
    config = runner.vllm_config
    replays = _has_graphs(runner) and padded_tokens <= largest_graph(config.compilation_config)
    return Vote(
        num_tokens,
        padded_tokens,
        graph_mode=GraphMode.PIECEWISE if replays else GraphMode.NONE,
        pad=not config.model_config.enforce_eager,
    )


def _vote_with_rows(runner: Any, num_tokens: int, padded_tokens: int) -> Vote:
    return Vote(num_tokens, padded_tokens, pad=_has_graphs(runner))


def _has_graphs(runner: Any) -> bool:
    return has_graphs(runner.vllm_config.compilation_config)


def _dispatched_mode(runner: Any, num_tokens: int) -> Any:
    from vllm.forward_context import BatchDescriptor

    mode, _ = runner.cudagraph_dispatcher.dispatch(BatchDescriptor(num_tokens=num_tokens))
    return mode
