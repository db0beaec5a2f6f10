# SPDX-License-Identifier: Apache-2.0
"""The start of a step: attention state and step vector, decided before upstream prepares its inputs.

No copy of upstream's padding, graph or micro-batching rules lives here: upstream's own decision code is run early and left
at its all-reduce. What it decides later in the step is compared with what was sent (`DPSession.resolve`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.attention_state import AttentionDecision, AttentionState, decide_attention_state
from vllm_ascend_patch.core.dp import Vote
from vllm_ascend_patch.core.dp.current import current_session, set_attention

from .all_reduce import captured_vote, parameters_of
from .drafts import plan_for_step


def prepare_inputs(original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    """Decide and post, then prepare inputs while the collective is under way."""
    scheduled = scheduled_tokens(runner, scheduler_output)
    attention = attention_of(runner, scheduler_output, scheduled)
    set_attention(attention)
    session = current_session()
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
            {"tokens": int(scheduled.sum()), "requests": len(scheduled), "attention": attention.state.value},
        )
    return result


def scheduled_tokens(runner: Any, scheduler_output: Any) -> np.ndarray:
    """Tokens that each request of the batch runs, `[num_reqs]` int32, in batch order."""
    by_request = scheduler_output.num_scheduled_tokens
    batch = runner.input_batch
    return np.array([by_request[request] for request in batch.req_ids[: batch.num_reqs]], dtype=np.int32)


def attention_of(runner: Any, scheduler_output: Any, scheduled: np.ndarray) -> AttentionDecision:
    """The attention state of the batch that upstream is about to prepare."""
    batch = runner.input_batch
    count = batch.num_reqs
    drafts = None
    by_request = scheduler_output.scheduled_spec_decode_tokens
    if by_request:
        drafts = np.array([len(by_request.get(request, ())) for request in batch.req_ids[:count]], dtype=np.int32)
    return decide_attention_state(
        batch.num_computed_tokens_cpu[:count], scheduled, batch.num_prompt_tokens[:count], drafts
    )


_decode_votes: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Vote]] = weakref.WeakKeyDictionary()


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
    key = None
    if attention.state is AttentionState.DECODE_ONLY:
        adapters = len(getattr(runner.input_batch, "lora_id_to_lora_request", ()))
        key = num_reqs, encoders, adapters, arguments.get("allow_microbatching", False)
        vote = _decode_votes.get(runner, {}).get(key)
        if vote is not None:
            return vote
    decide = runner._determine_batch_execution_and_padding
    names = parameters_of(decide.__func__)
    vote = captured_vote(decide, **{name: value for name, value in arguments.items() if name in names})
    if key is not None and vote is not None:
        _decode_votes.setdefault(runner, {})[key] = vote
    return vote
