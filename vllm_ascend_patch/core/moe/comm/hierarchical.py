# SPDX-License-Identifier: Apache-2.0
"""Hierarchical: AllToAll in two levels. Between hosts a token goes once per host, inside a host on to the ranks.

For many tokens where links between hosts are much slower than inside. On each host that has one of a token's experts one
rank is its relay: on the token's own host its own rank, elsewhere the one with the same place among the host's ranks
(counted round where a host has fewer). The relay sends the row on as AllToAll would a token of its own, adds up what comes
back, and returns one sum.

Collectives per layer, those of rows over EP with empty parts for the ranks that are not concerned:
    all-gather(EP) of counts -> [host read] -> all-to-all to relays -> all-to-all inside hosts -> all-to-all inside hosts of
    partial sums -> all-to-all of the relays' sums -> all-gather(TP) unless sequence parallel.

One host read does for both levels: a rank counts its tokens' pairs with hosts and with ranks, and a relay's rows are those
of known ranks. Rounding is that of AllToAll and one more, of the relay's sum to the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology

from .all_to_all import AllToAllMethod, ExchangedRows, Share, pack
from .destinations import Pairs, Sizes, Targets


@dataclass(frozen=True, eq=False)
class RelayedRows(ExchangedRows):
    """Rows of the local experts and the way back, over this rank as a relay, to the tokens' own ranks.

    Attributes:
        home: where this rank's tokens went; None when it had none.
        to_relays: rows to and from relays.
    """

    home: Pairs | None
    to_relays: Sizes


class HierarchicalMethod(AllToAllMethod):
    """See the module docstring.

    Args:
        topology: with expert parallelism over known hosts.
        placement: which rank holds which experts.
        operator_version: as of ``AllToAllMethod``.
    """

    name = "hierarchical"

    def __init__(self, topology: Topology, placement: ExpertPlacement, operator_version: int | None = None) -> None:
        super().__init__(topology, placement, operator_version)
        if len(topology.ranks_per_host) < 2:
            raise MoEConfigError("Hierarchical needs expert parallelism over at least 2 hosts, and to know their ranks")
        # Of this and all other ranks: the relay of its tokens on a host, and that on the way to a rank. For the host only.
        to_host = relays(topology.ranks_per_host)
        self._relay_to_host = torch.tensor(to_host, device="cpu")
        host_of = [host for host, ranks in enumerate(topology.ranks_per_host) for _ in range(ranks)]
        self._relay_to_rank = torch.tensor([[row[host] for host in host_of] for row in to_host], device="cpu")
        ranks, ends = Targets.ranks(placement, 1).experts, [0, *accumulate(topology.ranks_per_host)]
        self._hosts = Targets.pairs_only((ranks[first][0], ranks[end - 1][1]) for first, end in pairwise(ends))
        first, end = next((first, end) for first, end in pairwise(ends) if topology.ep.rank < end)
        self._ranks_here = Targets.pairs_only(ranks[first:end])

    def dispatch(self, prepared: Share) -> RelayedRows:
        """``[n, H]`` -> a row per token and host -> all-to-all to relays -> ``[R, H]`` -> a row per relayed row and rank of
        the host -> all-to-all -> by local expert ``[A, H]``."""
        inputs = prepared.inputs
        layout, ranks = self.layout_of(inputs), Targets.ranks(self.placement, inputs.top_k)
        home, counts = self.find(inputs.topk_ids, self._hosts + ranks)
        to_relays, inside = self._sizes(self.counts_of_all(counts))
        if home is not None:
            home = home.first(len(self._hosts.experts))
        relayed = self.send(pack(inputs, layout), home, to_relays)
        pairs, _ = self.find(layout.ids(relayed), self._ranks_here)
        received = self.send(relayed, pairs, inside)
        rows = self.order_by_expert(received, layout, pairs, inside)
        return RelayedRows(**vars(rows), home=home, to_relays=to_relays)

    def combine(self, dispatched: ExchangedRows, expert_output: torch.Tensor) -> torch.Tensor:
        """``[A, H]`` -> sums per relayed row ``[R, H]``, as in AllToAll -> all-to-all -> sums per token ``[n, H]``."""
        assert isinstance(dispatched, RelayedRows)
        relayed = super().combine(dispatched, expert_output)
        return self.bring_back(relayed, dispatched.home, dispatched.to_relays)

    def _sizes(self, counts: torch.Tensor) -> tuple[Sizes, Sizes]:
        """Of the exchange with relays and of that inside hosts, from all ranks' counts: ``[EP, hosts + EP * copies]``."""
        rank, size, hosts = self.topology.ep.rank, self.topology.ep.size, len(self._hosts.experts)
        to_relays = counts.new_zeros(size, size).scatter_(1, self._relay_to_host, counts[:, :hosts])
        pairs = counts[:, hosts:].view(size, size, -1)
        relay = self._relay_to_rank.unsqueeze(2).expand_as(pairs)
        inside = torch.zeros_like(pairs).scatter_add_(0, relay, pairs)
        return Sizes.of(to_relays.unsqueeze(2), rank), Sizes.of(inside, rank)


def relays(ranks_per_host: tuple[int, ...]) -> list[list[int]]:
    """The relay of each rank's tokens on each host, by rank and host; ascending with the host."""
    hosts = [range(end - ranks, end) for end, ranks in zip(accumulate(ranks_per_host), ranks_per_host, strict=True)]
    return [
        [rank if there is own else there[place % len(there)] for there in hosts]
        for own in hosts
        for place, rank in enumerate(own)
    ]
