# SPDX-License-Identifier: Apache-2.0
"""AllGather: every rank of the gather group sees every token and computes its own experts; sums are scattered back.

Works in any world, with whole experts per rank or with slices of every expert. Cost: every rank receives all tokens,
whether or not it holds their experts.

Collectives per layer, G = the gather group (DP; EP when sequence parallel):
    all-gather(G) of hidden states (int8 when quantised) and of one int32 routing record per row
    -> reduce-scatter(G) -> all-reduce(TP), the last one not when sequence parallel.

Tokens are gathered after routing, not before: a record of K weights and K ids (and a scale) is smaller than E router
logits, and the router runs once per token instead of once per rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from vllm_ascend_patch.core.moe.constants import zero_rows
from vllm_ascend_patch.core.moe.experts import quantize_rows
from vllm_ascend_patch.core.moe.step import MoEStep, pad_rows

from .base import DispatchedRows, MoECommMethod, MoEInput
from .collectives import all_gather, reduce_scatter
from .local_routing import SortedRows, sort_by_expert, weighted_sum
from .padding import clean_rows


@dataclass(frozen=True, eq=False, kw_only=True)
class GatheredTokens:
    """All tokens of the gather group.

    Attributes:
        hidden_states: ``[N, H]``, N = sum of ``rows_per_rank``; int8 when quantised.
        topk_weights: fp32 ``[N, K]``.
        topk_ids: int32 ``[N, K]``.
        row_scales: fp32 ``[N]`` when quantised, else None.
        rows_per_rank: rows that each rank of the gather group contributed.
        output_rows: T.
        output_dtype: dtype of this rank's hidden states.
    """

    hidden_states: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    row_scales: torch.Tensor | None
    rows_per_rank: tuple[int, ...]
    output_rows: int
    output_dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class GatheredDispatch(DispatchedRows):
    """Rows of the local experts, and how they were sorted (None when there was no row at all)."""

    sorted_rows: SortedRows | None
    topk_weights: torch.Tensor


class AllGatherMethod(MoECommMethod[GatheredTokens, GatheredDispatch]):
    """See the module docstring."""

    name = "allgather"

    def prepare(self, inputs: MoEInput, step: MoEStep) -> GatheredTokens:
        """``[T, H]`` -> pad to the agreed maximum -> all-gather(G) -> drop the padding -> ``[N, H]``."""
        topology = self.topology
        axis = topology.gather_axis
        rows_per_rank = step.rows_per_gather_rank(topology)
        rows = inputs.hidden_states.shape[0]
        inputs = clean_rows(
            inputs, self.placement.num_experts, rows, step.active_rows(topology), step.mask_rows(topology)
        )
        hidden, scales = inputs.hidden_states, None
        if inputs.quantize:
            hidden, scales = quantize_rows(hidden)
        tokens = GatheredTokens(
            hidden_states=hidden,
            topk_weights=inputs.topk_weights,
            topk_ids=inputs.topk_ids,
            row_scales=scales,
            rows_per_rank=rows_per_rank,
            output_rows=rows,
            output_dtype=inputs.hidden_states.dtype,
        )
        return tokens if axis.size == 1 else self._gather(tokens)

    def dispatch(self, prepared: GatheredTokens) -> GatheredDispatch:
        """``[N, H]`` -> copies for the local experts, sorted: ``[N * K, H]``. No communication."""
        hidden = prepared.hidden_states
        if hidden.shape[0] == 0:
            counts = torch.zeros(self.placement.num_local, dtype=torch.int64, device=hidden.device)
            return GatheredDispatch(hidden, counts, prepared.row_scales, None, prepared.topk_weights)
        first = self.placement.first_local
        sorted_rows = sort_by_expert(
            hidden,
            prepared.topk_ids,
            self.placement.num_experts,
            first,
            first + self.placement.num_local,
            prepared.row_scales,
        )
        return GatheredDispatch(
            sorted_rows.rows, sorted_rows.counts, sorted_rows.row_scales, sorted_rows, prepared.topk_weights
        )

    def combine(self, dispatched: GatheredDispatch, expert_output: torch.Tensor) -> torch.Tensor:
        """``[N * K, H]`` -> this rank's partial sums ``[N, H]``. No communication."""
        if dispatched.sorted_rows is None:
            return expert_output
        all_local = self.placement.num_local == self.placement.num_experts
        return weighted_sum(expert_output, dispatched.sorted_rows, dispatched.topk_weights, all_local)

    def finalize(self, prepared: GatheredTokens, combined: torch.Tensor) -> torch.Tensor:
        """``[N, H]`` partial -> reduce-scatter(G) -> ``[T, H]`` -> all-reduce(TP) unless sequence parallel."""
        axis, tp = self.topology.gather_axis, self.topology.tp
        output = combined if axis.size == 1 else self._reduce_scatter(prepared, combined)
        if tp.size > 1 and not self.topology.sequence_parallel and output.shape[0] > 0:
            dist.all_reduce(output, group=tp.group)
        return output

    def _gather(self, tokens: GatheredTokens) -> GatheredTokens:
        if max(tokens.rows_per_rank) == 0:
            return tokens
        hidden = self._all_gather(tokens.hidden_states, tokens.rows_per_rank)
        record = self._all_gather(_pack_record(tokens), tokens.rows_per_rank)
        return _unpack_record(replace(tokens, hidden_states=hidden), record)

    def _all_gather(self, local: torch.Tensor, rows_per_rank: tuple[int, ...]) -> torch.Tensor:
        """``[T, W]`` -> ``[sum(rows_per_rank), W]``."""
        axis, most = self.topology.gather_axis, max(rows_per_rank)
        assert axis.group is not None
        gathered = all_gather(pad_rows(local, most), axis.group, axis.size)
        if min(rows_per_rank) == most:
            return gathered
        return torch.cat([gathered[r * most : r * most + rows] for r, rows in enumerate(rows_per_rank)])

    def _reduce_scatter(self, prepared: GatheredTokens, combined: torch.Tensor) -> torch.Tensor:
        """``[N, H]`` -> ``[T, H]``."""
        rows_per_rank, most = prepared.rows_per_rank, max(prepared.rows_per_rank)
        if most == 0:
            return combined
        axis = self.topology.gather_axis
        if min(rows_per_rank) != most:
            parts = torch.split(combined, list(rows_per_rank))
            tails = (zero_rows(most - rows, combined) for rows in rows_per_rank)
            combined = torch.cat([piece for both in zip(parts, tails, strict=True) for piece in both])
        assert axis.group is not None
        return reduce_scatter(combined, axis.group, axis.size)[: prepared.output_rows]


def _pack_record(tokens: GatheredTokens) -> torch.Tensor:
    """Weights, ids and scale of a row as one int32 record ``[T, 2K (+ 1)]``: floats travel as their bits."""
    parts = [tokens.topk_weights.view(torch.int32), tokens.topk_ids]
    if tokens.row_scales is not None:
        parts.append(tokens.row_scales.view(torch.int32).unsqueeze(1))
    return torch.cat(parts, dim=1)


def _unpack_record(tokens: GatheredTokens, record: torch.Tensor) -> GatheredTokens:
    top_k = tokens.topk_ids.shape[1]
    return replace(
        tokens,
        topk_weights=record[:, :top_k].contiguous().view(torch.float32),
        topk_ids=record[:, top_k : 2 * top_k].contiguous(),
        row_scales=None if tokens.row_scales is None else record[:, 2 * top_k].contiguous().view(torch.float32),
    )
