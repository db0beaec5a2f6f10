# SPDX-License-Identifier: Apache-2.0
"""AllToAll: each routed row goes to its expert's rank and nowhere else, in an exchange of exact, variable sizes.

For large token counts. Only real tokens are sent. The sizes have to be known on the host, which costs one device read
per layer, so no graph can capture it.

Collectives per layer:
    all-to-all(EP) of expert counts -> [host read] -> all-to-all(EP) of rows (and of scales when quantised)
    -> all-to-all(EP) of results -> all-gather(TP) unless sequence parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist

from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.experts import quantize_rows
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology
from vllm_ascend_patch.core.operator_limits import RE_ROUTING_WIDTH

from .base import DispatchedRows, MoECommMethod, MoEInput
from .local_routing import SortedRows, sort_by_expert, weighted_sum
from .token_split import TokenShare, restore_all, take_share


@dataclass(frozen=True, eq=False)
class Share:
    """This rank's n real tokens, views of the layer's input, and how to get back to T rows."""

    inputs: MoEInput
    share: TokenShare


@dataclass(frozen=True, eq=False)
class ExchangedRows(DispatchedRows):
    """Rows of the local experts, all defined, and the way back.

    Attributes:
        sorted_rows: how this rank's rows were sorted before they were sent; None when it had none.
        topk_weights: fp32 ``[n, K]``.
        arrival: int64 ``[A]``: row i of ``rows`` arrived as row ``arrival[i]``; None when the order is the same.
        send_splits: rows sent to each rank.
        recv_splits: rows received from each rank.
    """

    sorted_rows: SortedRows | None
    topk_weights: torch.Tensor
    arrival: torch.Tensor | None
    send_splits: list[int]
    recv_splits: list[int]


class AllToAllMethod(MoECommMethod[Share, ExchangedRows]):
    """See the module docstring."""

    name = "alltoall"

    def __init__(self, topology: Topology, placement: ExpertPlacement) -> None:
        super().__init__(topology, placement)
        if not topology.expert_parallel:
            raise MoEConfigError("AllToAll needs expert parallelism over at least 2 ranks")

    def prepare(self, inputs: MoEInput, step: MoEStep) -> Share:
        """``[T, H]`` -> this rank's real tokens ``[n, H]``, a view. No communication."""
        own_tokens = step.tokens_per_dp_rank[self.topology.dp.rank]
        share = take_share(inputs, step, self.topology, own_tokens)
        n = share.active
        return Share(
            MoEInput(
                share.inputs.hidden_states[:n],
                share.inputs.topk_weights[:n],
                share.inputs.topk_ids[:n],
                inputs.quantize,
            ),
            share,
        )

    def dispatch(self, prepared: Share) -> ExchangedRows:
        """``[n, H]`` -> copies sorted by expert ``[n * K, H]`` -> all-to-all(EP) -> by local expert ``[A, H]``."""
        inputs = prepared.inputs
        rows, scales, send_counts, sorted_rows = self._sort(inputs)
        table = self._exchange_counts(send_counts)
        # The one host read of the layer.
        counts_on_host = torch.cat([send_counts, table.flatten()]).tolist()
        send_splits, recv_splits = self._splits(counts_on_host)
        received = self._exchange(rows, recv_splits, send_splits)
        received_scales = None if scales is None else self._exchange(scales, recv_splits, send_splits)
        ordered, ordered_scales, arrival, counts = _order_by_expert(received, received_scales, table)
        return ExchangedRows(
            ordered, counts, ordered_scales, sorted_rows, inputs.topk_weights, arrival, send_splits, recv_splits
        )

    def combine(self, dispatched: ExchangedRows, expert_output: torch.Tensor) -> torch.Tensor:
        """``[A, H]`` -> order of arrival -> all-to-all(EP) -> ``[n * K, H]`` -> weighted sums ``[n, H]``."""
        if dispatched.arrival is not None:
            expert_output = torch.empty_like(expert_output).index_copy_(0, dispatched.arrival, expert_output)
        returned = self._exchange(expert_output, dispatched.send_splits, dispatched.recv_splits)
        if dispatched.sorted_rows is None:
            return returned
        return weighted_sum(returned, dispatched.sorted_rows, dispatched.topk_weights, all_local=True)

    def finalize(self, prepared: Share, combined: torch.Tensor) -> torch.Tensor:
        """``[n, H]`` -> pad -> all-gather(TP) unless sequence parallel -> ``[T, H]``, zero past the real tokens."""
        return restore_all(prepared.share, combined, self.topology)

    def _sort(self, inputs: MoEInput) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, SortedRows | None]:
        hidden, scales = inputs.hidden_states, None
        if inputs.quantize:
            hidden, scales = quantize_rows(hidden)
        if hidden.shape[0] == 0:
            counts = torch.zeros(self.placement.num_experts, dtype=torch.int64, device=hidden.device)
            return hidden, scales, counts, None
        everyone = self.placement.num_experts
        sorted_rows = sort_by_expert(hidden, inputs.topk_ids, everyone, 0, everyone, scales)
        return sorted_rows.rows, sorted_rows.row_scales, sorted_rows.counts, sorted_rows

    def _exchange_counts(self, send_counts: torch.Tensor) -> torch.Tensor:
        """int64 ``[E]``, rows for each expert -> ``[EP, L]``, rows from each rank for each local expert."""
        ep, local = self.topology.ep, self.placement.num_local
        table = send_counts.new_empty((ep.size * local,))
        dist.all_to_all_single(table, send_counts, [local] * ep.size, list(self.placement.counts), group=ep.group)
        return table.view(ep.size, local)

    def _splits(self, counts_on_host: list[int]) -> tuple[list[int], list[int]]:
        """Rows to and from each rank out of the counts to each expert and the table, both flat."""
        experts, local = self.placement.num_experts, self.placement.num_local
        bounds = list(accumulate(self.placement.counts, initial=0))
        send = [sum(counts_on_host[a:b]) for a, b in pairwise(bounds)]
        starts = range(experts, len(counts_on_host), local)
        return send, [sum(counts_on_host[start : start + local]) for start in starts]

    def _exchange(self, rows: torch.Tensor, recv_splits: list[int], send_splits: list[int]) -> torch.Tensor:
        received = rows.new_empty((sum(recv_splits), *rows.shape[1:]))
        dist.all_to_all_single(received, rows, recv_splits, send_splits, group=self.topology.ep.group)
        return received


def _order_by_expert(
    rows: torch.Tensor, scales: torch.Tensor | None, table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Rows grouped by source rank, then local expert -> rows grouped by local expert.

    Args:
        rows: ``[A, H]``, A = ``table.sum()``.
        scales: fp32 ``[A]`` or None.
        table: int64 ``[EP, L]``.

    Returns:
        rows, scales, the arrival index of each row (None when unchanged), int64 ``[L]`` counts.
    """
    import torch_npu

    total, local = rows.shape[0], table.shape[1]
    if local == 1 or total == 0:
        return rows, scales, None, table.sum(0)
    if rows.dtype == torch.float32 or rows.shape[1] >= RE_ROUTING_WIDTH:
        experts = torch.arange(local, device=rows.device).repeat(table.shape[0])
        expert_of_row = torch.repeat_interleave(experts, table.flatten(), output_size=total)
        arrival = torch.argsort(expert_of_row, stable=True)
        ordered_scales = None if scales is None else scales[arrival]
        return rows[arrival], ordered_scales, arrival, table.sum(0)
    ordered, ordered_scales, arrival, counts = torch_npu.npu_moe_re_routing(rows, table, per_token_scales=scales)
    return ordered, None if scales is None else ordered_scales, arrival.to(torch.int64), counts
