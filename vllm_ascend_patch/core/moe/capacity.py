# SPDX-License-Identifier: Apache-2.0
"""How many tokens MC2 is used for: from the operator's limit, the largest captured graph and the scheduler's settings.

Pure arithmetic. MC2's buffers are sized for the worst case, so a capacity beyond what decoding can reach would only
cost memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from .arithmetic import ceil_div
from .limits import (
    HCCL_BUFFSIZE_DEFAULT_MIB,
    MoEFacts,
    hccl_buffsize_floor_mib,
    max_rows_for_buffsize,
    mc2_limits,
)


@dataclass(frozen=True)
class SchedulerFacts:
    """What bounds the tokens of a step. The same on every rank.

    Attributes:
        max_num_batched_tokens: most tokens of a step on one DP rank.
        max_num_seqs: most requests of a step on one DP rank.
        tokens_per_decode: tokens of one decoding request, 1 + speculative ones.
        max_captured_tokens: tokens of the largest captured graph, 0 when no graph contains the MoE layers.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    tokens_per_decode: int = 1
    max_captured_tokens: int = 0

    @property
    def decode_tokens(self) -> int:
        """Most tokens of a step on one DP rank that decodes only, or that a graph can take."""
        most = max(self.max_captured_tokens, self.max_num_seqs * self.tokens_per_decode)
        return min(most, self.max_num_batched_tokens)


@dataclass(frozen=True)
class Capacity:
    """What MC2 takes.

    Attributes:
        rows: tokens per rank and call; 0 when not even one fits.
        tokens: tokens per DP rank and step, ``rows * TP``.
        limited_by: what decided the number.
        hccl_floor_mib: HCCL window that ``rows`` needs, in MiB.
        full_floor_mib: HCCL window that would hold everything but the buffer's own limit, in MiB.
    """

    rows: int
    tokens: int
    limited_by: str
    hccl_floor_mib: int
    full_floor_mib: int


def mc2_capacity(facts: MoEFacts, scheduler: SchedulerFacts) -> Capacity:
    """Capacity of MC2 for these settings.

    The window limits it to the tokens that fit, whether ``HCCL_BUFFSIZE`` was set or HCCL's default holds.
    """
    wanted = max(ceil_div(scheduler.decode_tokens, facts.tp_size), 1)
    rows, limited_by = wanted, f"{scheduler.decode_tokens} tokens of a full decode step or captured graph"
    operator = mc2_limits(facts).max_rows
    if rows > operator:
        rows, limited_by = operator, f"the operator's limit of {operator} tokens per rank on {facts.soc.value}"
    full_floor = hccl_buffsize_floor_mib(facts, rows)
    window = HCCL_BUFFSIZE_DEFAULT_MIB if facts.hccl_buffsize_mib is None else facts.hccl_buffsize_mib
    if full_floor > window:
        limiting = (
            f"HCCL's default window of {window} MiB" if facts.hccl_buffsize_mib is None else f"HCCL_BUFFSIZE={window}"
        )
        rows = max_rows_for_buffsize(facts, window)
        limited_by = f"{limiting}; HCCL_BUFFSIZE={full_floor} would allow {min(wanted, operator)} tokens per rank"
    floor = hccl_buffsize_floor_mib(facts, rows) if rows else full_floor
    return Capacity(rows, rows * facts.tp_size, limited_by, floor, full_floor)
