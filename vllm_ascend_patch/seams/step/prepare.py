# SPDX-License-Identifier: Apache-2.0
"""The start of a step: attention state and step vector, decided and posted before upstream prepares its inputs.

What upstream decides later in the step is compared with what was sent (``DPSession.resolve``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams import serving

from .batch import attention_of, scheduled_tokens
from .drafts import plan_for_step
from .vote import own_vote


def prepare_inputs(original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    """Decide and post, then prepare inputs while the collective is under way."""
    session = serving.entering(runner).session
    scheduled = scheduled_tokens(runner, scheduler_output)
    attention = attention_of(runner, scheduler_output, scheduled)
    start = time.perf_counter_ns()
    try:
        if session is not None:
            vote = own_vote(runner, scheduler_output, scheduled, attention)
            if vote is not None:
                session.announce(vote, attention.with_prefill, plan_for_step(runner, scheduled))
        announced = time.perf_counter_ns()
        result = original(runner, scheduler_output, *args, **kwargs)
    except Exception as error:
        if session is not None:
            session.abandon(error)
        raise
    if trace.enabled():
        trace.complete("announce", start, announced, {"attention": attention.state.value})
        trace.complete(
            "prepare inputs",
            announced,
            time.perf_counter_ns(),
            {
                "tokens": int(scheduled.sum()),
                "requests": len(scheduled),
                "prefills": attention.num_prefills,
                "attention": attention.state.value,
            },
        )
    return result
