# SPDX-License-Identifier: Apache-2.0
"""AllToAll: each token goes once to every rank that has one of its experts, and one sum comes back from each.

For large token counts. Only real tokens are sent. The sizes have to be known on the host, which costs one device read
per layer, so no graph can capture it.

Collectives per layer:
    all-gather(EP) of counts per destination -> [host read] -> all-to-all(EP) of rows, each with its expert ids, weights
    and scale -> all-to-all(EP) of partial sums -> all-gather(TP) unless sequence parallel.

Rounding, besides that of the expert MLP: the sums that come back are rounded to the model's dtype, and so are router weights
unless that is bf16 and the operators take float32 beside it. Sums are made in float32, on the experts' ranks and at home.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from vllm_ascend_patch.core.moe.constants import one_rows
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.experts import quantize_rows
from vllm_ascend_patch.core.moe.soc import routing_operator_version
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology

from .base import DispatchedRows, MoECommMethod, MoEInput
from .collectives import all_gather
from .destinations import Pairs, Sizes, Targets, find_pairs, sort_index
from .local_routing import SortedRows, sort_by_expert, sum_present
from .packed_rows import RowLayout
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
        pairs: where this rank's tokens went; None when it had none.
        positions: int32 ``[R * K]``: the row of each copy of the R received tokens, -1 for experts of other ranks.
        weights: ``[R, K]``, of the received tokens.
        sizes: rows sent and received.
    """

    pairs: Pairs | None
    positions: torch.Tensor
    weights: torch.Tensor
    sizes: Sizes


class AllToAllMethod(MoECommMethod[Share, ExchangedRows]):
    """See the module docstring.

    Args:
        topology: with expert parallelism.
        placement: which rank holds which experts.
        operator_version: of ``soc.routing_operator_version``; detected when not given.
    """

    name = "alltoall"

    def __init__(self, topology: Topology, placement: ExpertPlacement, operator_version: int | None = None) -> None:
        super().__init__(topology, placement)
        self.newest_operators = (operator_version or routing_operator_version()) == 2
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
                inputs.sums,
            ),
            share,
        )

    def dispatch(self, prepared: Share) -> ExchangedRows:
        """``[n, H]`` -> a row per pair of token and rank -> all-to-all(EP) -> ``[R, H]`` -> by local expert ``[A, H]``."""
        inputs = prepared.inputs
        layout, ranks = self.layout_of(inputs), Targets.ranks(self.placement, inputs.top_k)
        pairs, counts = self.find(inputs.topk_ids, ranks)
        size, rank = self.topology.ep.size, self.topology.ep.rank
        sizes = Sizes.of(self.counts_of_all(counts).view(size, size, -1), rank)
        received = self.send(pack(inputs, layout), pairs, sizes)
        return self.order_by_expert(received, layout, pairs, sizes)

    def combine(self, dispatched: ExchangedRows, expert_output: torch.Tensor) -> torch.Tensor:
        """``[A, H]`` -> weighted sums per received row ``[R, H]`` -> all-to-all(EP) -> sums per token ``[n, H]``."""
        partial = expert_output
        if dispatched.weights.shape[0]:
            partial = sum_present(expert_output, dispatched.positions, dispatched.weights)
        return self.bring_back(partial, dispatched.pairs, dispatched.sizes)

    def finalize(self, prepared: Share, combined: torch.Tensor) -> torch.Tensor:
        """``[n, H]`` -> pad -> all-gather(TP) unless sequence parallel -> ``[T, H]``, zero past the real tokens."""
        return restore_all(prepared.share, combined, self.topology)

    def layout_of(self, inputs: MoEInput) -> RowLayout:
        """How rows travel."""
        dtype = inputs.hidden_states.dtype
        float32 = dtype == torch.bfloat16 and self.newest_operators
        weights_dtype = torch.float32 if float32 else dtype
        return RowLayout(inputs.hidden_states.shape[1], inputs.top_k, dtype, inputs.quantize, weights_dtype)

    def find(self, topk_ids: torch.Tensor, targets: Targets) -> tuple[Pairs | None, torch.Tensor]:
        """The pairs of int32 ``[n, K]`` expert ids and destinations, None without a token; and int64 counts per key."""
        if topk_ids.shape[0] == 0:
            return None, torch.zeros(targets.keys, dtype=torch.int64, device=topk_ids.device)
        pairs = find_pairs(topk_ids, targets, self.placement.num_experts, fused=self.newest_operators)
        return pairs, pairs.counts

    def counts_of_all(self, counts: torch.Tensor) -> torch.Tensor:
        """This rank's counts, int64 ``[keys]`` -> those of all, ``[EP, keys]`` on the CPU: the layer's one host read."""
        ep = self.topology.ep
        assert ep.group is not None
        return all_gather(counts, ep.group, ep.size).cpu().view(ep.size, -1)

    def send(self, rows: torch.Tensor, pairs: Pairs | None, sizes: Sizes) -> torch.Tensor:
        """``[n, width]`` -> a row for each pair -> all-to-all(EP) -> ``[R, width]``."""
        if pairs is not None:
            rows = rows.index_select(0, pairs.tokens[: sum(sizes.send)])
        return self._exchange(rows, sizes.receive, sizes.send)

    def bring_back(self, sums: torch.Tensor, pairs: Pairs | None, sizes: Sizes) -> torch.Tensor:
        """The way back of ``send``: a sum per received row ``[R, H]`` -> all-to-all(EP) -> sums per row ``[n, H]``."""
        returned = self._exchange(sums, sizes.send, sizes.receive)
        if pairs is None:
            return returned
        ones = one_rows(pairs.positions.shape[0] // pairs.destinations, pairs.destinations, returned)
        return sum_present(returned, pairs.positions, ones)

    def order_by_expert(
        self, received: torch.Tensor, layout: RowLayout, pairs: Pairs | None, sizes: Sizes
    ) -> ExchangedRows:
        """``[R, width]`` -> one row per copy that a local expert needs ``[A, H]``, sorted by expert."""
        hidden, ids, weights, scales = (
            layout.hidden(received),
            layout.ids(received),
            layout.weights(received),
            layout.scales(received),
        )
        if received.shape[0] == 0:
            counts = torch.zeros(self.placement.num_local, dtype=torch.int64, device=received.device)
            return ExchangedRows(hidden, counts, scales, pairs, ids.view(-1), weights, sizes)
        found = self._expand(hidden, ids, scales, sizes.copies)
        return ExchangedRows(found.rows, found.counts, found.row_scales, pairs, found.positions, weights, sizes)

    def _expand(self, hidden: torch.Tensor, ids: torch.Tensor, scales: torch.Tensor | None, copies: int) -> SortedRows:
        """``[R, H]`` -> ``[copies, H]``, sorted by local expert."""
        experts, first = self.placement.num_experts, self.placement.first_local
        last = first + self.placement.num_local
        if self.newest_operators:
            return sort_by_expert(hidden, ids, experts, first, last, scales, copies)
        order = sort_index(ids, experts, first, last, scales)
        row_scales = None if order.row_scales is None else order.row_scales[:copies]
        return SortedRows(hidden.index_select(0, order.rows[:copies]), order.positions, order.counts, row_scales)

    def _exchange(self, rows: torch.Tensor, recv_splits: list[int], send_splits: list[int]) -> torch.Tensor:
        received = rows.new_empty((sum(recv_splits), *rows.shape[1:]))
        dist.all_to_all_single(received, rows, recv_splits, send_splits, group=self.topology.ep.group)
        return received


def pack(inputs: MoEInput, layout: RowLayout) -> torch.Tensor:
    """Tokens with their routing: ``[n, width]``."""
    hidden, scales = inputs.hidden_states, None
    if inputs.quantize:
        hidden, scales = quantize_rows(hidden)
    return layout.pack(hidden, inputs.topk_ids, inputs.topk_weights, scales)
