# SPDX-License-Identifier: Apache-2.0
"""Foresees the drafter forwards of a step, so that the step's vector can carry them and they need no all-reduce.

Only what is certain is foreseen: a plan that turns out wrong stops the engine, a missing one costs a collective. So every
condition that upstream's drafters depend on is asked for here, and unknown drafters have no plan.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from vllm_ascend_patch.core.dp import DraftPlan, DraftVote
from vllm_ascend_patch.seams import serving

from .vote import captured_vote

_DECIDE = "_determine_batch_execution_and_padding"


def _drafter(runner: Any) -> Any | None:
    """The drafter, if it is one whose token counts are known before the step: one forward over the step's tokens, then
    one token per request."""
    drafter = getattr(runner, "drafter", None)
    settings = getattr(runner, "speculative_config", None)
    certain = (
        drafter is not None
        and settings is not None
        and type(drafter).__name__ == "EagleProposer"
        and hasattr(drafter, _DECIDE)
        and not getattr(drafter, "needs_extra_input_slots", False)
        and not getattr(drafter, "parallel_drafting", False)
        and not getattr(settings, "disable_padded_drafter_batch", False)
        and getattr(runner, "lora_config", None) is None
        and hasattr(runner, "_input_fits_in_drafter")
    )
    return drafter if certain else None


def plan_for_step(runner: Any, scheduled_tokens: np.ndarray) -> DraftPlan | None:
    """The drafter forwards that follow a step of real work.

    Args:
        runner: the model runner, its batch updated for the step.
        scheduled_tokens: ``[num_reqs]`` ints.
    """
    drafter = _drafter(runner)
    if drafter is None:
        return None
    num_reqs = len(scheduled_tokens)
    longest = int((runner.input_batch.num_computed_tokens_cpu[:num_reqs] + scheduled_tokens).max())
    if runner._input_fits_in_drafter(SimpleNamespace(max_seq_len=longest)):
        return _plan(drafter, int(scheduled_tokens.sum()), num_reqs)
    return _plan(drafter, 1, 1)  # upstream runs the drafter on one dummy token then, so that no rank waits


def plan_for_dummy(runner: Any, num_tokens: int) -> DraftPlan | None:
    """The drafter forwards of an idle step: the same dummy tokens each time."""
    drafter = _drafter(runner)
    if drafter is None:
        return None
    return _plan(drafter, num_tokens, num_tokens, use_cudagraphs=not runner.speculative_config.enforce_eager)


def _plan(drafter: Any, first: int, following: int, use_cudagraphs: bool = True) -> DraftPlan | None:
    first_vote, next_vote = _vote(drafter, first, use_cudagraphs), _vote(drafter, following, use_cudagraphs)
    return DraftPlan(first_vote, next_vote) if first_vote and next_vote else None


def _vote(drafter: Any, num_tokens: int, use_cudagraphs: bool) -> DraftVote | None:
    """Asked for once per count: upstream's answer is a look-up among graphs that are all known before it serves."""
    votes = serving.current().votes.drafts
    key = num_tokens, use_cudagraphs
    if key not in votes:
        vote = captured_vote(getattr(drafter, _DECIDE), num_tokens, use_cudagraphs=use_cudagraphs)
        votes[key] = vote.as_draft() if vote is not None else None
    return votes[key]
