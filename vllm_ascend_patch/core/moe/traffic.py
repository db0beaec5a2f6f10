# SPDX-License-Identifier: Apache-2.0
"""Bytes on the wire per MoE layer and rank, for each method, and the floor that no method can go below. Pure arithmetic.

A rank's traffic is what it sends to other ranks; in all these collectives it receives as much on average. Even ring
collectives are assumed for gather and reduce, exact sends for the others. What transports add is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp

from .arithmetic import ceil_div
from .comm import ALLGATHER, ALLTOALL, HIERARCHICAL, MC2
from .limits import MoEFacts

ROUTE_BYTES = 8
"""Router weight (fp32) and expert id (int32) of one routed copy in AllGather's record."""
SCALE_BYTES = 4
"""fp32 scale of one int8 row."""
COUNT_BYTES = 8
"""int64 count of AllToAll's exchange of sizes."""

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_WEIGHT_BYTES = {"bfloat16": 4, "float16": 2, "float32": 4}
_ID_BYTES = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends for one layer.

    Attributes:
        dispatch: token rows on their way to experts (values and scales of int8 rows included).
        combine: result rows on their way back.
        routing: router weights, ids and row counts.
        tp: what restores or sums the result over TP.
        between_hosts: of what travels over EP, what leaves the host; None where every peer is sent alike.
    """

    dispatch: float
    combine: float
    routing: float = 0.0
    tp: float = 0.0
    between_hosts: float | None = None

    @property
    def rows(self) -> float:
        """Token and result rows only; what the floor counts."""
        return self.dispatch + self.combine

    @property
    def over_ep(self) -> float:
        """What travels between the ranks that share the experts."""
        return self.rows + self.routing

    @property
    def total(self) -> float:
        """All bytes."""
        return self.over_ep + self.tp


def dispatch_row_bytes(facts: MoEFacts) -> int:
    """Bytes of a token on its way to an expert."""
    return facts.hidden_size + SCALE_BYTES if facts.quantized else combine_row_bytes(facts)


def combine_row_bytes(facts: MoEFacts) -> int:
    """Bytes of a result on its way back; results are never quantised."""
    return facts.hidden_size * _DTYPE_BYTES[facts.dtype]


def distinct_ranks(facts: MoEFacts, skewed: bool = False) -> float:
    """Expert parallel ranks that a token has to reach on average, its own among them.

    Args:
        facts: constants.
        skewed: not every choice of K experts alike, but expert i chosen with a weight of 1 / (i + 1) (Zipf), so that the
            experts that are asked for most share a rank.

    Uniform routing is exact (hypergeometric). For skewed routing each expert counts as drawn by itself, with the rate at
    which K experts are drawn on average.
    """
    experts, ranks = facts.num_experts, facts.ep_size
    if not skewed:
        return ranks * _reaches(facts, 1 / ranks)
    weights = [1 / (expert + 1) for expert in range(experts)]
    rate = _rate(weights, min(facts.top_k, experts))
    base, larger = divmod(experts, ranks)
    reached, first = 0.0, 0
    for rank in range(ranks):
        after = first + base + (rank < larger)
        reached += 1 - exp(-rate * sum(weights[first:after]))
        first = after
    return reached


def _reaches(facts: MoEFacts, share: float) -> float:
    """The probability that one of a token's experts is among a ``share`` of them, when all choices are alike."""
    others = facts.num_experts * (1 - share)
    missed = 1.0
    for drawn in range(facts.top_k):
        missed *= max(others - drawn, 0.0) / max(facts.num_experts - drawn, 1)
    return 1 - missed


def other_hosts(facts: MoEFacts) -> float:
    """Hosts besides its own that a token has to reach on average, all choices of experts alike."""
    shares = [ranks / facts.ep_size for ranks in facts.ranks_per_host]
    return sum((1 - share) * _reaches(facts, share) for share in shares)


def _rate(weights: list[float], drawn: int) -> float:
    """The rate at which ``drawn`` experts are expected to be drawn at least once."""
    low, high = 0.0, 1.0
    expected = lambda rate: sum(1 - exp(-rate * weight) for weight in weights)  # noqa: E731
    while expected(high) < drawn and high < 1e9:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < drawn else (low, middle)
    return high


def floor(facts: MoEFacts, tokens: float, skewed: bool = False) -> Traffic:
    """The least: each token once to every other rank that has one of its experts, and one sum back from each.

    Args:
        facts: constants; ``ep_size`` above 1.
        tokens: tokens of each DP rank, spread over its TP ranks.
        skewed: see ``distinct_ranks``.
    """
    return _per_pair(facts, tokens, distinct_ranks(facts, skewed), 0)


def floor_between_hosts(facts: MoEFacts, tokens: float) -> float:
    """The least bytes to other hosts: each token once to every other host that has one of its experts, and one sum back.

    Uniform routing; 0 unless ``ranks_per_host`` is known.
    """
    return tokens / facts.tp_size * other_hosts(facts) * (dispatch_row_bytes(facts) + combine_row_bytes(facts))


def method_traffic(facts: MoEFacts, method: str, tokens: int) -> Traffic:
    """Traffic of a method when every DP rank has ``tokens`` tokens and experts are chosen uniformly."""
    formulas = {ALLGATHER: _allgather, MC2: _mc2, ALLTOALL: _alltoall, HIERARCHICAL: _hierarchical}
    return formulas[method](facts, tokens)


def packed_routing_bytes(facts: MoEFacts) -> int:
    """What AllToAll's rows carry besides the token: ids, weights and padding to four bytes (``comm/packed_rows.py``).

    Weights as ``soc.routing_operator_version`` 2 takes them.
    """
    values = facts.hidden_size if facts.quantized else combine_row_bytes(facts)
    routing = facts.top_k * (_ID_BYTES + _WEIGHT_BYTES[facts.dtype])
    return routing + -(routing + values) % 4


def _per_pair(facts: MoEFacts, tokens: float, copies: float, routing: int) -> Traffic:
    """Rows that go to ``copies`` ranks a token, of which one in EP is this one."""
    remote = tokens / facts.tp_size * copies * (facts.ep_size - 1) / facts.ep_size
    return Traffic(remote * dispatch_row_bytes(facts), remote * combine_row_bytes(facts), remote * routing)


def _allgather(facts: MoEFacts, tokens: int) -> Traffic:
    sequence_parallel = facts.sequence_parallel
    others = (facts.ep_size if sequence_parallel else facts.dp_size) - 1
    rows = others * (ceil_div(tokens, facts.tp_size) if sequence_parallel else tokens)
    record = facts.top_k * ROUTE_BYTES + (SCALE_BYTES if facts.quantized else 0)
    values = facts.hidden_size if facts.quantized else combine_row_bytes(facts)
    tp = 0.0 if sequence_parallel else 2 * (facts.tp_size - 1) / facts.tp_size * tokens * combine_row_bytes(facts)
    return Traffic(rows * values, rows * combine_row_bytes(facts), rows * record, tp)


def _mc2(facts: MoEFacts, tokens: int) -> Traffic:
    """A row per copy, as the vendor's operators have it: they know experts, not ranks."""
    return _with_tp_gather(facts, tokens, _per_pair(facts, tokens, facts.top_k, 0))


def _alltoall(facts: MoEFacts, tokens: int) -> Traffic:
    exchanged = _per_pair(facts, tokens, distinct_ranks(facts), packed_routing_bytes(facts))
    counts = facts.ep_size * min(facts.top_k, facts.local_experts) * COUNT_BYTES * (facts.ep_size - 1)
    return _with_tp_gather(facts, tokens, Traffic(exchanged.dispatch, exchanged.combine, exchanged.routing + counts))


def _hierarchical(facts: MoEFacts, tokens: int) -> Traffic:
    """A row to each other host, and on each host from the relay to each other rank; sums the same ways back."""
    own, hosts = tokens / facts.tp_size, facts.ranks_per_host
    between = own * other_hosts(facts)
    rows = between + own * distinct_ranks(facts) / facts.ep_size * (facts.ep_size - len(hosts))
    dispatch, combine, routing = dispatch_row_bytes(facts), combine_row_bytes(facts), packed_routing_bytes(facts)
    counts = (len(hosts) + facts.ep_size * min(facts.top_k, facts.local_experts)) * COUNT_BYTES
    ranks_elsewhere = facts.ep_size - sum(ranks * ranks for ranks in hosts) / facts.ep_size
    exchanged = Traffic(
        rows * dispatch,
        rows * combine,
        rows * routing + counts * (facts.ep_size - 1),
        between_hosts=between * (dispatch + combine + routing) + counts * ranks_elsewhere,
    )
    return _with_tp_gather(facts, tokens, exchanged)


def _with_tp_gather(facts: MoEFacts, tokens: int, exchanged: Traffic) -> Traffic:
    chunk = ceil_div(tokens, facts.tp_size)
    tp = 0.0 if facts.sequence_parallel else (facts.tp_size - 1) * chunk * combine_row_bytes(facts)
    return replace(exchanged, tp=tp)
