# SPDX-License-Identifier: Apache-2.0
"""Bytes on the wire per MoE layer and rank, for each method, and the least that any method could do. Pure arithmetic.

A rank's traffic is what it sends to other ranks; in all these collectives it receives as much on average. Even ring
collectives are assumed for gather and reduce, exact sends for the others, and experts chosen uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass

from .arithmetic import ceil_div
from .limits import MoEFacts
from .selection import ALLGATHER, ALLTOALL, MC2

ROUTE_BYTES = 8
"""Router weight (fp32) and expert id (int32) of one routed copy."""
SCALE_BYTES = 4
"""fp32 scale of one int8 row."""
COUNT_BYTES = 8
"""int64 row count per expert."""

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends for one layer.

    Attributes:
        dispatch: token rows on their way to experts (values and scales of int8 rows included).
        combine: result rows on their way back.
        routing: router weights, ids and row counts.
        tp: what restores or sums the result over TP.
    """

    dispatch: float
    combine: float
    routing: float = 0.0
    tp: float = 0.0

    @property
    def rows(self) -> float:
        """Token and result rows only; what the lower bound counts."""
        return self.dispatch + self.combine

    @property
    def total(self) -> float:
        """All bytes."""
        return self.rows + self.routing + self.tp


def dispatch_row_bytes(facts: MoEFacts) -> int:
    """Bytes of a token on its way to an expert."""
    return facts.hidden_size + SCALE_BYTES if facts.quantized else combine_row_bytes(facts)


def combine_row_bytes(facts: MoEFacts) -> int:
    """Bytes of a result on its way back; results are never quantised."""
    return facts.hidden_size * _DTYPE_BYTES[facts.dtype]


def lower_bound(facts: MoEFacts, tokens: int) -> Traffic:
    """Each routed copy of a token once to its expert's rank and once back, unless it is already there.

    Args:
        facts: constants; ``ep_size`` above 1.
        tokens: tokens of each DP rank, spread over its TP ranks.
    """
    return _exact(facts, tokens / facts.tp_size)


def method_traffic(facts: MoEFacts, method: str, tokens: int, sequence_parallel: bool = False) -> Traffic:
    """Traffic of a method when every DP rank has ``tokens`` tokens."""
    formulas = {ALLGATHER: _allgather, MC2: _mc2, ALLTOALL: _alltoall}
    return formulas[method](facts, tokens, sequence_parallel)


def _exact(facts: MoEFacts, tokens_per_rank: float) -> Traffic:
    remote_copies = tokens_per_rank * facts.top_k * (facts.ep_size - 1) / facts.ep_size
    return Traffic(remote_copies * dispatch_row_bytes(facts), remote_copies * combine_row_bytes(facts))


def _allgather(facts: MoEFacts, tokens: int, sequence_parallel: bool) -> Traffic:
    others = (facts.ep_size if sequence_parallel else facts.dp_size) - 1
    rows = others * (ceil_div(tokens, facts.tp_size) if sequence_parallel else tokens)
    record = facts.top_k * ROUTE_BYTES + (SCALE_BYTES if facts.quantized else 0)
    values = facts.hidden_size if facts.quantized else combine_row_bytes(facts)
    tp = 0.0 if sequence_parallel else 2 * (facts.tp_size - 1) / facts.tp_size * tokens * combine_row_bytes(facts)
    return Traffic(rows * values, rows * combine_row_bytes(facts), rows * record, tp)


def _mc2(facts: MoEFacts, tokens: int, sequence_parallel: bool) -> Traffic:
    return _with_tp_gather(facts, tokens, sequence_parallel, routing=0.0)


def _alltoall(facts: MoEFacts, tokens: int, sequence_parallel: bool) -> Traffic:
    counts = facts.num_experts * COUNT_BYTES * (facts.ep_size - 1) / facts.ep_size
    return _with_tp_gather(facts, tokens, sequence_parallel, counts)


def _with_tp_gather(facts: MoEFacts, tokens: int, sequence_parallel: bool, routing: float) -> Traffic:
    exact = _exact(facts, tokens / facts.tp_size)
    chunk = ceil_div(tokens, facts.tp_size)
    tp = 0.0 if sequence_parallel else (facts.tp_size - 1) * chunk * combine_row_bytes(facts)
    return Traffic(exact.dispatch, exact.combine, routing, tp)
