# SPDX-License-Identifier: Apache-2.0
"""The data-parallel agreement in the releases that decide nothing before they ask: each rank sends its token count.

Up to 0.11.0 through ``DPMetadata.num_tokens_across_dp``, once its inputs are prepared; in 0.11.1 and 0.11.2 through
``_run_ar`` (``dp_sync.py``) while they are. The step vector takes its place: announced before input preparation, handed
back where upstream asks. Padding stays upstream's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_ascend_patch.core.dp import Vote
from vllm_ascend_patch.core.dp.current import current_session, set_attention

from .prepare_inputs import attention_of, scheduled_tokens


def prepare_inputs(original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    """Decide and post, then prepare inputs while the collective is under way.

    The port runs eager in these releases (``npu/config_defaults.py``), so upstream pads for no graph before it asks.
    """
    attention = attention_of(runner, scheduler_output, scheduled_tokens(runner, scheduler_output))
    set_attention(attention)
    session = current_session()
    if session is None:
        return original(runner, scheduler_output, *args, **kwargs)
    try:
        session.announce(_vote(scheduler_output.total_num_scheduled_tokens), attention.with_prefill)
        return original(runner, scheduler_output, *args, **kwargs)
    except Exception as error:
        session.abandon(error)
        raise


def num_tokens_across_dp(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of upstream's all-reduce: int32 ``[dp size]`` on the CPU, the tokens of every rank."""
    session = current_session()
    if session is None:
        return original(*args, **kwargs)
    num_tokens = kwargs["num_tokens"] if "num_tokens" in kwargs else args[0]
    agreement = session.resolve(_vote(num_tokens))
    session.channel.progress.enter("forward", blocking=True)
    return torch.tensor(agreement.padded_tokens, dtype=torch.int32)


def _vote(num_tokens: int) -> Vote:
    return Vote(tokens=num_tokens, padded_tokens=num_tokens, microbatch=False, graph_mode=0, pad=False)
