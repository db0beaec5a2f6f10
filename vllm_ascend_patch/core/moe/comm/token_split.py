# SPDX-License-Identifier: Apache-2.0
"""This rank's own share of the tokens, and the way back to all of them: shared by MC2 and AllToAll.

Plain layout: tokens are replicated over TP; each TP rank takes a chunk of equal size (the last ones may be partly or
wholly padding), and an all-gather over TP restores them. Sequence-parallel layout: the rank's rows are its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_ascend_patch.core.moe.step import MoEStep, pad_rows
from vllm_ascend_patch.core.moe.topology import Topology

from .base import MoEInput
from .collectives import all_gather


@dataclass(frozen=True, eq=False)
class TokenShare:
    """This rank's share.

    Attributes:
        inputs: rows of the share that exist on this rank, at most ``chunk``; views, nothing is copied.
        active: real tokens among them; they come first.
        mask: bool over the rows of ``inputs``, when the step has a mask.
        chunk: rows of a share with its padding, the same on all TP ranks.
        output_rows: T, rows to return to.
    """

    inputs: MoEInput
    active: int
    mask: torch.Tensor | None
    chunk: int
    output_rows: int


def take_share(inputs: MoEInput, step: MoEStep, topology: Topology, tokens: int) -> TokenShare:
    """Divide the rank's rows.

    Args:
        tokens: row count of a DP rank that decides the chunk size, ``ceil(tokens / TP)``; at least this DP rank's own.
    """
    total = inputs.hidden_states.shape[0]
    chunk = step.chunk_rows(topology, tokens)
    active, mask = step.active_rows(topology), step.mask_rows(topology)
    if not topology.splits_tokens_over_tp:
        return TokenShare(inputs, active, mask, chunk, total)
    first = min(topology.tp.rank * chunk, total)
    rows = min(chunk, total - first)
    share = MoEInput(
        inputs.hidden_states.narrow(0, first, rows),
        inputs.topk_weights.narrow(0, first, rows),
        inputs.topk_ids.narrow(0, first, rows),
        inputs.quantize,
        inputs.sums,
    )
    active = min(max(active - first, 0), rows)
    return TokenShare(share, active, None if mask is None else mask.narrow(0, first, rows), chunk, total)


def restore_all(share: TokenShare, result: torch.Tensor, topology: Topology) -> torch.Tensor:
    """``[<= chunk, H]`` -> pad to the chunk -> all-gather(TP) -> ``[T, H]``; only a cut when sequence parallel."""
    if not topology.splits_tokens_over_tp:
        return pad_rows(result, max(share.output_rows, result.shape[0]))[: share.output_rows]
    if share.output_rows == 0:
        return result[:0]
    assert topology.tp.group is not None
    # Into a new tensor: the caller's may still be read by shared experts.
    return all_gather(pad_rows(result, share.chunk), topology.tp.group, topology.tp.size)[: share.output_rows]
