# SPDX-License-Identifier: Apache-2.0
"""The router's arithmetic in torch and torch_npu operators: top-k over router scores, and replicas of hot experts.

vLLM has these as CUDA and Triton kernels, which an out-of-tree device lacks. Which routing a model uses is decided
upstream; nothing here communicates.
"""

from __future__ import annotations

import torch
import torch_npu

from . import gating
from .constants import at_least, row_index

_KNUTH_MULTIPLIER = 2654435769  # floor(2**32 / golden ratio): spreads consecutive token indices over replicas


def top_k_softmax(
    logits: torch.Tensor, top_k: int, renormalize: bool, selection_bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over experts in float32, then the ``top_k`` largest.

    A row whose softmax does not exist (a NaN or an infinity among its logits) has scores of 0, as in upstream's kernels: its
    expert ids are valid and distinct, its weights are 0.

    Args:
        logits: ``[T, E]``, any float dtype.
        renormalize: divide each row's weights by their sum.
        selection_bias: ``[E]``; added to the scores for choosing only, the weights come from the unbiased scores.

    Returns:
        Weights float32 ``[T, top_k]`` and expert ids int32 ``[T, top_k]``.
    """
    if selection_bias is None and logits.shape[0]:
        logits = logits.float()
        # The operator must not see them: which ids it returns for a row of NaN is not documented.
        broken = ~logits.amax(dim=-1, keepdim=True).isfinite()
        weights, ids, _ = torch_npu.npu_moe_gating_top_k_softmax(logits.masked_fill(broken, 0.0), None, top_k)
        weights = weights.masked_fill(broken, 0.0)
    else:
        weights, ids = _biased_top_k(logits.float().softmax(dim=-1).nan_to_num(nan=0.0), top_k, selection_bias)
    return (_normalised(weights) if renormalize else weights), ids


def top_k_sigmoid(
    logits: torch.Tensor,
    top_k: int,
    renormalize: bool,
    selection_bias: torch.Tensor | None = None,
    scaling_factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoid per expert in float32, then the ``top_k`` largest; arguments and results as in ``top_k_softmax``.

    ``scaling_factor`` multiplies the weights after normalisation. A NaN counts as a score of 0, of its expert alone.
    """
    if renormalize and gating.takes(logits.shape[1], top_k):
        return gating.sigmoid_top_k(logits, top_k, selection_bias, scaling_factor)
    weights, ids = _biased_top_k(logits.float().sigmoid().nan_to_num(nan=0.0), top_k, selection_bias)
    if renormalize:
        weights = _normalised(weights)
    return (weights * scaling_factor if scaling_factor != 1.0 else weights), ids


def map_to_replicas(
    topk_ids: torch.Tensor, logical_to_physical: torch.Tensor, replica_count: torch.Tensor
) -> torch.Tensor:
    """Physical expert ids for logical ones, spreading tokens over an expert's replicas by a hash of the token index.

    Args:
        topk_ids: integer ``[T, K]`` of logical experts; ids outside the table become -1.
        logical_to_physical: integer ``[logical experts, slots]``.
        replica_count: integer ``[logical experts]``, how many of the slots are filled.

    Returns:
        ``[T, K]`` in the dtype of ``topk_ids``.
    """
    hashed = _hashed_tokens(topk_ids.shape[0], topk_ids.device)
    known = (topk_ids >= 0) & (topk_ids < replica_count.shape[0])
    logical = torch.where(known, topk_ids, torch.zeros_like(topk_ids)).long()
    slot = hashed % replica_count[logical].long().clamp(min=1)
    physical = logical_to_physical[logical, slot]
    return torch.where(known, physical.to(topk_ids.dtype), torch.full_like(topk_ids, -1))


def record_load(
    load: torch.Tensor, physical_ids: torch.Tensor, enabled: torch.Tensor, num_tokens: torch.Tensor | None
) -> None:
    """Add to ``load[physical experts]`` one for each routed row of the first ``num_tokens`` tokens, if ``enabled``.

    ``enabled`` and ``num_tokens`` are one-element device tensors and stay there: nothing is read by the host.
    """
    counted = (physical_ids >= 0) & (physical_ids < load.shape[0]) & (enabled.reshape(()) != 0)
    if num_tokens is not None:
        tokens = row_index(physical_ids.shape[0], physical_ids.device).unsqueeze(1)
        counted &= tokens < num_tokens.reshape(())
    rows = physical_ids.clamp(0, load.shape[0] - 1).reshape(-1).long()
    load.scatter_add_(0, rows, counted.reshape(-1).to(load.dtype))


def _hashed_tokens(rows: int, device: torch.device) -> torch.Tensor:
    """int64 ``[rows, 1]``: a number below 2**32 for each token index. Kept across steps."""

    def make(n: int) -> torch.Tensor:
        tokens = torch.arange(n, dtype=torch.int64, device=device).unsqueeze(1)
        return (tokens * _KNUTH_MULTIPLIER) & 0xFFFFFFFF

    return at_least(rows, ("hashed tokens", device), make)[:rows]


def _biased_top_k(
    scores: torch.Tensor, top_k: int, selection_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen_by = scores if selection_bias is None else scores + selection_bias.float()
    ids = chosen_by.topk(top_k, dim=-1).indices
    return scores.gather(-1, ids), ids.to(torch.int32)


def _normalised(weights: torch.Tensor) -> torch.Tensor:
    """Each row divided by its sum; a row of zeros stays one."""
    return weights / weights.sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(weights.dtype).tiny)
