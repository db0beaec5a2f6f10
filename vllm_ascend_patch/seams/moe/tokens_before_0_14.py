# SPDX-License-Identifier: Apache-2.0
"""The step's token counts in releases that do not ask the platform for forward context fields.

There they are made from the forward context itself when they are first needed: by a graph that is about to be captured or
replayed, else by the first MoE layer of the forward.
"""

from __future__ import annotations

from typing import Any

from vllm_ascend_patch.core.moe.forward_tokens import ForwardTokens
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import dp_rank, tokens_across_dp

from .tokens import FIELD, forward_context_fields


def forward_tokens(context: Any, rows: int) -> ForwardTokens:
    """The counts for ``context``, a forward context of vLLM; made once per forward.

    Args:
        context: the forward context.
        rows: rows of the forward; they are the step's tokens where there is no data parallelism.
    """
    known = vars(context).get(FIELD)
    if known is None:
        across_dp = tokens_across_dp(context.dp_metadata)
        rank = dp_rank()
        known = forward_context_fields(
            attn_metadata=context.attn_metadata,
            vllm_config=serving.current().config,
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
