# SPDX-License-Identifier: Apache-2.0
"""The step's token counts in releases that do not ask the platform for forward context fields.

There they are made from the forward context itself when they are first needed: by a graph that is about to be captured or
replayed, else by the first MoE layer of the forward.
"""

from __future__ import annotations

from typing import Any

import torch

from .facts import worker_config
from .tokens import FIELD, ForwardTokens, forward_context_fields


def forward_tokens(context: Any, rows: int) -> ForwardTokens:
    """The counts for ``context``, a forward context of vLLM; made once per forward.

    Args:
        rows: rows of the forward; they are the step's tokens where there is no data parallelism.
    """
    known = vars(context).get(FIELD)
    if known is None:
        across_dp = tokens_across_dp(context.dp_metadata)
        rank = _dp_rank()
        known = forward_context_fields(
            attn_metadata=context.attn_metadata,
            vllm_config=worker_config(),
            num_tokens=rows if across_dp is None else int(across_dp[rank]),
            num_tokens_across_dp=across_dp,
            ubatch_slices=getattr(context, "ubatch_slices", None),
            cudagraph_runtime_mode=getattr(context, "cudagraph_runtime_mode", None),
            dp_rank=rank,
        )[FIELD]
        setattr(context, FIELD, known)
    return known


def prepare_graph(context: Any) -> None:
    """Bring what graphs read up to date before one is captured or replayed: a replay runs no layer that would ask."""
    if context.cudagraph_runtime_mode.name != "NONE":
        forward_tokens(context, context.batch_descriptor.num_tokens)


def tokens_across_dp(metadata: Any) -> torch.Tensor | None:
    """int ``[dp size]`` on the CPU; the oldest releases keep running sums."""
    if metadata is None:
        return None
    counts = getattr(metadata, "num_tokens_across_dp_cpu", None)
    if counts is None:
        sums = metadata.cu_tokens_across_dp_cpu
        counts = torch.diff(sums, prepend=sums.new_zeros(1))
    return counts


def _dp_rank() -> int:
    from vllm.distributed.parallel_state import get_dp_group

    return get_dp_group().rank_in_group
