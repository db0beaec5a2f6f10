# SPDX-License-Identifier: Apache-2.0
"""Upstream's own decision about a forward, run early and left at its all-reduce with what this rank would send there.

No copy of upstream's padding, graph or micro-batching rules lives here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_ascend_patch.core.attention_state import AttentionDecision, AttentionState
from vllm_ascend_patch.core.dp import Vote
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of


class VoteCapturedError(BaseException):
    """Leaves upstream's decision code at its all-reduce, with this rank's vote. Not an ``Exception``: nothing between may
    catch it."""

    def __init__(self, vote: Vote) -> None:
        super().__init__(vote)
        self.vote = vote


def captured_vote(decide: Callable[..., Any], *args: Any, **kwargs: Any) -> Vote | None:
    """Call upstream's decision code up to its all-reduce and return what this rank would have sent there.

    Args:
        decide: a function that ends in ``coordinate_batch_across_dp``; up to there it must have no side effect.
        *args: its arguments.
        **kwargs: its arguments by name.

    Returns:
        None if it never came to an all-reduce (no data parallelism, or coordination is switched off).
    """
    step = serving.current().step
    before, step.capturing = step.capturing, True
    try:
        decide(*args, **kwargs)
    except VoteCapturedError as captured:
        return captured.vote
    finally:
        step.capturing = before
    return None


def own_vote(runner: Any, scheduler_output: Any, scheduled: np.ndarray, attention: AttentionDecision) -> Vote | None:
    """What this rank will send in upstream's all-reduce of this step; None if there will be none.

    Upstream's code takes some 70 microseconds for it, mostly on a cold cache, and is asked again later in the step. While
    every request runs one token, all that it looks at follows from a few numbers, so it is asked once for each of them.
    """
    num_reqs = len(scheduled)
    encoders = len(scheduler_output.scheduled_encoder_inputs)
    arguments: dict[str, Any] = {
        "num_tokens": scheduler_output.total_num_scheduled_tokens,
        "num_reqs": num_reqs,
        "num_scheduled_tokens_np": scheduled,
        "max_num_scheduled_tokens": attention.max_query_len,
        "use_cascade_attn": False,  # the runner's cascade attention is off
        "num_encoder_reqs": encoders,
    }
    if hasattr(runner, "_allow_microbatching"):
        arguments["allow_microbatching"] = runner._allow_microbatching(num_reqs, scheduled)
    known = serving.entering(runner).votes.decode
    key = None
    if attention.state is AttentionState.DECODE_ONLY:
        adapters = len(getattr(runner.input_batch, "lora_id_to_lora_request", ()))
        key = num_reqs, encoders, adapters, arguments.get("allow_microbatching", False)
        vote = known.get(key)
        if vote is not None:
            return vote
    decide = runner._determine_batch_execution_and_padding
    names = parameters_of(decide.__func__)
    vote = captured_vote(decide, **{name: value for name, value in arguments.items() if name in names})
    if key is not None and vote is not None:
        known[key] = vote
    return vote
