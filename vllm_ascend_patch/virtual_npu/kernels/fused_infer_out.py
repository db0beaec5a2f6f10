# SPDX-License-Identifier: Apache-2.0
"""The ``.out`` forms of ``npu_fused_infer_attention_score`` and what a caller needs for them: result tensors, workspace.

Graphs use these forms: the result and the workspace are allocated once, and the call's lengths can be updated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .fused_infer_attention import fused_infer_attention_score, fused_infer_attention_score_v2
from .limits import require, require_shape

#: The reference kernel needs none; a caller that allocates what it was told gets something to allocate.
_WORKSPACE_BYTES = 1024


def fused_infer_attention_score_out(
    *tensors: torch.Tensor, workspace: torch.Tensor | None = None, out: Sequence[torch.Tensor], **arguments: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``.out`` form of version 1: ``out`` is the attention output and the log-sum-exp."""
    return _into(fused_infer_attention_score(*tensors, **arguments), out)  # type: ignore[arg-type]


def fused_infer_attention_score_v2_out(
    *tensors: torch.Tensor, workspace: torch.Tensor | None = None, out: Sequence[torch.Tensor], **arguments: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``.out`` form of version 2."""
    return _into(fused_infer_attention_score_v2(*tensors, **arguments), out)  # type: ignore[arg-type]


def _into(results: tuple[torch.Tensor, torch.Tensor], out: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    op = "npu_fused_infer_attention_score.out"
    require(op, len(out) == 2, "out must be the attention output and the log-sum-exp", len(out))
    attention, sums = out
    require_shape(op, "out[0]", attention, results[0].shape)
    require(op, attention.dtype == results[0].dtype, f"out[0] must be {results[0].dtype}", attention.dtype)
    attention.copy_(results[0])
    if results[1].numel():
        require_shape(op, "out[1]", sums, results[1].shape)
        sums.copy_(results[1])
    return attention, sums


def max_workspace(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Memory for a call of any lengths, on the query's device."""
    return torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=query.device)


def infer_output(
    query: torch.Tensor,
    value: torch.Tensor,
    *,
    input_layout: str = "BSH",
    block_table: torch.Tensor | None = None,
    num_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_lse_flag: bool = False,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unwritten tensors on the query's device, of the shapes that the call of these arguments returns."""
    layout, result = input_layout.partition("_")[::2]
    kv_heads = num_key_value_heads or num_heads
    folded = value.dim() == 3 and (block_table is not None or layout == "BSH")
    head = value.shape[-1] // kv_heads if folded else value.shape[-1]
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    if layout == "BSH":
        shape, rows = (*query.shape[:2], num_heads * head), (query.shape[0], num_heads, query.shape[1])
    elif layout == "TND":
        shape, rows = (*query.shape[:2], head), tuple(query.shape[:2])
    elif layout == "BSND":
        shape, rows = (*query.shape[:3], head), (query.shape[0], query.shape[2], query.shape[1])
    else:
        batch, heads, length = query.shape[:3]
        shape = (batch, length, heads, head) if result == "BSND" else (batch, heads, length, head)
        rows = (batch, heads, length)
    sums = (*rows, 1) if softmax_lse_flag else (0,)
    return query.new_empty(shape), query.new_empty(sums, dtype=torch.float32)


def infer_output_v2(
    query: torch.Tensor,
    value: torch.Tensor,
    *,
    num_query_heads: int = 1,
    return_softmax_lse: bool = False,
    **arguments: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for version 2."""
    return infer_output(
        query,
        value,
        num_heads=num_query_heads,
        softmax_lse_flag=return_softmax_lse,
        **arguments,  # type: ignore[arg-type]
    )
