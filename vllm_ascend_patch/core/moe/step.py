# SPDX-License-Identifier: Apache-2.0
"""What all ranks agreed on for one forward step. Host values only: nothing here reads a device.

The counts come from the one data parallel synchronisation of the step, so they are the same on every rank, and so is
everything derived from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .arithmetic import ceil_div
from .constants import zero_rows
from .errors import MoEConfigError
from .topology import Topology


@dataclass(frozen=True)
class MoEStep:
    """One step, as agreed.

    Attributes:
        tokens_per_dp_rank: rows of ``hidden_states`` that each DP rank computes with, after that rank's own padding.
        active_tokens: real tokens among this DP rank's rows; they come first. 0 on an idle rank.
        method: name of the communication method, one of ``comm.METHODS``.
        captured: True while a graph is captured or replayed: sizes are frozen, the host may not read the device.
        active_mask: bool ``[tokens_per_dp_rank[dp_rank]]`` on the device, True for real tokens, all True before any
            False. Takes precedence over ``active_tokens``. Meant for captured graphs, into which a count would be
            frozen: a captured step without a mask treats all rows as real tokens.
    """

    tokens_per_dp_rank: tuple[int, ...]
    active_tokens: int
    method: str
    captured: bool = False
    active_mask: torch.Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.tokens_per_dp_rank or min(self.tokens_per_dp_rank) < 0 or self.active_tokens < 0:
            raise MoEConfigError(
                f"token counts have to be >= 0, one per DP rank: {self.tokens_per_dp_rank}, active {self.active_tokens}"
            )

    @property
    def max_tokens(self) -> int:
        """Most rows on any DP rank."""
        return max(self.tokens_per_dp_rank)

    def chunk_rows(self, topology: Topology, tokens: int) -> int:
        """Rows per TP rank when ``tokens`` rows of a DP rank are divided over TP, padding included."""
        return ceil_div(tokens, topology.tp.size)

    def rows(self, topology: Topology) -> int:
        """Rows of ``hidden_states`` on this rank."""
        tokens = self.tokens_per_dp_rank[topology.dp.rank]
        return self.chunk_rows(topology, tokens) if topology.sequence_parallel else tokens

    def rows_per_gather_rank(self, topology: Topology) -> tuple[int, ...]:
        """Rows on each rank of ``topology.gather_axis``."""
        if not topology.sequence_parallel:
            return self.tokens_per_dp_rank
        return tuple(
            self.chunk_rows(topology, tokens) for tokens in self.tokens_per_dp_rank for _ in range(topology.tp.size)
        )

    def active_rows(self, topology: Topology) -> int:
        """Real tokens among the rows of ``hidden_states`` on this rank (they come first)."""
        rows = self.rows(topology)
        if self.captured and self.active_mask is None:
            return rows  # a count that is frozen into the graph would drop tokens of a fuller replay
        first = topology.tp.rank * rows if topology.sequence_parallel else 0
        return min(max(self.active_tokens - first, 0), rows)

    def mask_rows(self, topology: Topology) -> torch.Tensor | None:
        """``active_mask`` for the rows on this rank, bool ``[rows]``; None when no mask was given."""
        if self.active_mask is None or not topology.sequence_parallel:
            return self.active_mask
        rows = self.rows(topology)
        return pad_rows(self.active_mask, rows * topology.tp.size).narrow(0, topology.tp.rank * rows, rows)

    def check(self, topology: Topology, hidden_states: torch.Tensor) -> None:
        """Raise ``MoEConfigError`` when ``hidden_states`` does not have the rows that the ranks agreed on."""
        if len(self.tokens_per_dp_rank) != topology.dp.size:
            raise MoEConfigError(
                f"the step has token counts for {len(self.tokens_per_dp_rank)} DP ranks, "
                f"the topology has {topology.dp.size}"
            )
        if hidden_states.shape[0] != self.rows(topology):
            raise MoEConfigError(
                f"hidden_states has {hidden_states.shape[0]} rows on DP rank {topology.dp.rank}, but the ranks agreed "
                f"on {self.rows(topology)} ({self.tokens_per_dp_rank} tokens per DP rank, "
                f"sequence_parallel={topology.sequence_parallel}); every rank has to pad to the agreed count"
            )


def pad_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """``tensor`` with zero (False) rows appended up to ``rows``; the tensor itself when it has them already."""
    missing = rows - tensor.shape[0]
    if missing == 0:
        return tensor
    return torch.cat([tensor, zero_rows(missing, tensor)])
