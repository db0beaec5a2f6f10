# SPDX-License-Identifier: Apache-2.0
"""What the scheduler handed out for this step, per request: token counts and the attention state that follows."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_ascend_patch.core.attention_state import AttentionDecision, decide_attention_state


def scheduled_tokens(runner: Any, scheduler_output: Any) -> np.ndarray:
    """Tokens that each request of the batch runs, ``[num_reqs]`` int32, in batch order."""
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
