# SPDX-License-Identifier: Apache-2.0
"""The attention state of a batch, decided from request counts alone, before any tensor of the step exists.

A pure function of per-request numbers, for the step's vote and the trace. Which calls a batch leads to is the attention
backend's business: it groups requests by the tokens that they run, whatever state they are in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


class AttentionState(enum.Enum):
    """What the attention of one batch has to do.

    PREFILL_NO_CACHE: every request starts its prompt here; queries attend only to keys of this step.
    PREFILL_CACHE_HIT: every request is inside its prompt, and some have keys in the cache already.
    DECODE_ONLY: every request is past its prompt and runs one token.
    SPEC_DECODING: every request is past its prompt, and some run draft tokens to be verified.
    CHUNKED_PREFILL: requests inside their prompt and past it in one batch.
    """

    PREFILL_NO_CACHE = "prefill_no_cache"
    PREFILL_CACHE_HIT = "prefill_cache_hit"
    DECODE_ONLY = "decode_only"
    SPEC_DECODING = "spec_decoding"
    CHUNKED_PREFILL = "chunked_prefill"


@dataclass(frozen=True, slots=True)
class AttentionDecision:
    """A batch's attention state, and the counts of requests and tokens that it was decided from.

    Attributes:
        state: which of ``AttentionState`` the batch is in.
        with_prefill: some request is still inside its prompt.
        num_prefills: how many are.
        max_query_len: most tokens that one request runs.
    """

    state: AttentionState
    with_prefill: bool
    num_prefills: int
    max_query_len: int


_Counts = npt.NDArray[Any]


def decide_attention_state(
    computed_tokens: _Counts,
    scheduled_tokens: _Counts,
    prompt_tokens: _Counts,
    draft_tokens: _Counts | None = None,
) -> AttentionDecision:
    """Decide a batch's attention state.

    Args:
        computed_tokens: ``[num_reqs]`` ints, tokens of each request whose keys are in the cache before this step.
        scheduled_tokens: ``[num_reqs]`` ints above 0, tokens each request runs in this step, drafts included.
        prompt_tokens: ``[num_reqs]`` ints, prompt length.
        draft_tokens: ``[num_reqs]`` ints, draft tokens to verify among the scheduled ones; None for no speculation. A
            request past its prompt that runs more than one token and its drafts (preempted, recomputing what it had
            generated) counts as a prefill.

    Raises:
        ValueError: no request, arrays of different lengths, or a request without a scheduled token.
    """
    computed, scheduled, prompt = (np.asarray(a) for a in (computed_tokens, scheduled_tokens, prompt_tokens))
    if computed.ndim != 1 or computed.shape != scheduled.shape or computed.shape != prompt.shape or not computed.size:
        raise ValueError(
            "attention state needs three equally long, non-empty vectors; found shapes "
            f"{computed.shape}, {scheduled.shape}, {prompt.shape}"
        )
    if int(scheduled.min()) < 1:
        raise ValueError(f"a request without scheduled tokens is in the batch: {scheduled.tolist()}")
    drafts = 0 if draft_tokens is None else np.asarray(draft_tokens)
    in_prompt = (computed < prompt) | (scheduled > 1 + drafts)
    num_prefills = int(np.count_nonzero(in_prompt))
    num_decodes = int(computed.size) - num_prefills
    max_query_len = int(scheduled.max())
    if num_decodes == 0:
        state = AttentionState.PREFILL_CACHE_HIT if bool(computed.any()) else AttentionState.PREFILL_NO_CACHE
    elif num_prefills:
        state = AttentionState.CHUNKED_PREFILL
    else:
        state = AttentionState.DECODE_ONLY if max_query_len == 1 else AttentionState.SPEC_DECODING
    return AttentionDecision(state, num_prefills > 0, num_prefills, max_query_len)
