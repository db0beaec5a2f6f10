# SPDX-License-Identifier: Apache-2.0
"""Where this rank stands: its tensor, data and expert parallel groups, and which experts live where.

Nothing here communicates, except ``Mc2Communicator``, which creates its process group when first asked to.

Layout, the same as vLLM's: rank in the expert parallel group = ``dp_rank * tp_size + tp_rank``. Without expert
parallelism every rank holds a slice of every expert (the intermediate size is divided over all DP x TP ranks), and
``ep`` has size 1.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from .errors import MoEConfigError


@dataclass(frozen=True, eq=False)
class ParallelAxis:
    """One parallel dimension as this rank sees it.

    Attributes:
        size: number of ranks along the axis.
        rank: this rank's index on it.
        group: the device process group of the axis; may be None when ``size`` is 1.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise MoEConfigError(f"rank {self.rank} is outside a parallel axis of size {self.size}")
        if self.size > 1 and self.group is None:
            raise MoEConfigError(f"a parallel axis of size {self.size} needs its process group")


class Mc2Communicator:
    """The communicator that the dispatch/combine operators use and nothing else may use.

    CANN requires that no other collective runs on it, so it is a group of its own over the expert parallel ranks.
    ``open`` creates the group and its HCCL communicator. Both are collective: every rank of the expert parallel group
    has to call it, at the same point (after the weights are loaded is a good one).

    Args:
        ep_group: the expert parallel device group whose ranks the communicator spans.
        buffer_size_mib: HCCL window of this communicator alone, in MiB; None leaves it to ``HCCL_BUFFSIZE``. The vendor
            documents the per-group option for A3 only.
    """

    def __init__(self, ep_group: dist.ProcessGroup, buffer_size_mib: int | None = None) -> None:
        self._ep_group = ep_group
        self._buffer_size_mib = buffer_size_mib
        self._group: dist.ProcessGroup | None = None
        self._name: str | None = None
        self._lock = threading.Lock()

    def open(self) -> str:
        """Create the group on first call; return the HCCL communicator name (1..127 characters)."""
        with self._lock:
            if self._name is None:
                ranks = dist.get_process_group_ranks(self._ep_group)
                self._group = dist.new_group(
                    ranks, backend="hccl", pg_options=self._options(), use_local_synchronization=True
                )
                backend: Any = self._group._get_backend(torch.device("npu"))
                # Only the keyword form of init_comm is read by torch_npu.
                self._name = backend.get_hccl_comm_name(dist.get_rank(), init_comm=True)
            return self._name

    @property
    def name(self) -> str:
        """HCCL communicator name; opens the communicator when nobody has yet."""
        return self._name if self._name is not None else self.open()

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group once opened, for tear-down and for counting traffic in tests."""
        return self._group

    def _options(self) -> object | None:
        if self._buffer_size_mib is None:
            return None
        from torch_npu._C._distributed_c10d import ProcessGroupHCCL

        options = ProcessGroupHCCL.Options()
        options.hccl_config = {"hccl_buffer_size": self._buffer_size_mib}
        return options


@dataclass(frozen=True, eq=False)
class Topology:
    """The parallel layout around one mixture-of-experts layer.

    Attributes:
        tp: tensor parallel axis. Tokens are replicated over it unless ``sequence_parallel``.
        dp: data parallel axis.
        ep: expert parallel axis, ``tp.size * dp.size`` ranks; size 1 when experts are not distributed.
        sequence_parallel: True when each TP rank already holds its own chunk of the DP rank's tokens, ``ceil(n / tp)``
            rows each.
        mc2: the dedicated communicator of the dispatch/combine operators; None when they cannot be used.
        ranks_per_host: of the expert parallel ranks, in rank order: a host's follow each other. Empty where all are on one
            host, or where that is not known or not so.
    """

    tp: ParallelAxis
    dp: ParallelAxis
    ep: ParallelAxis
    sequence_parallel: bool = False
    mc2: Mc2Communicator | None = None
    ranks_per_host: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        world = self.tp.size * self.dp.size
        if self.ep.size not in (1, world):
            raise MoEConfigError(
                f"expert parallel size {self.ep.size} is not supported: it has to be 1 or TP x DP = "
                f"{self.tp.size} x {self.dp.size} = {world} (prefill context parallelism is not supported)"
            )
        expected = self.dp.rank * self.tp.size + self.tp.rank
        if self.ep.size > 1 and self.ep.rank != expected:
            raise MoEConfigError(
                f"expert parallel rank {self.ep.rank} does not follow the layout "
                f"dp_rank * tp_size + tp_rank = {expected}"
            )
        if self.ranks_per_host and sum(self.ranks_per_host) != self.ep.size:
            raise MoEConfigError(
                f"hosts with {self.ranks_per_host} ranks do not make {self.ep.size} expert parallel ranks"
            )
        if self.sequence_parallel and self.ep.size != world:
            raise MoEConfigError("sequence-parallel MoE needs expert parallelism over all TP x DP ranks")

    @property
    def expert_parallel(self) -> bool:
        """True when whole experts are distributed over ranks."""
        return self.ep.size > 1

    @property
    def splits_tokens_over_tp(self) -> bool:
        """True when MC2 and AllToAll have to divide replicated tokens over TP themselves."""
        return self.tp.size > 1 and not self.sequence_parallel

    @property
    def gather_axis(self) -> ParallelAxis:
        """The axis over which AllGather collects tokens: DP for replicated tokens, EP for sequence-parallel ones."""
        return self.ep if self.sequence_parallel else self.dp


@dataclass(frozen=True)
class ExpertPlacement:
    """Which rank of the expert parallel group holds which (physical) experts: contiguous ranges in rank order.

    Attributes:
        counts: experts per rank; one entry when experts are not distributed.
        rank: this rank's index into ``counts``.
    """

    counts: tuple[int, ...]
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(self.counts) or min(self.counts) < 1:
            raise MoEConfigError(f"rank {self.rank} with experts per rank {self.counts}: every rank needs an expert")

    @classmethod
    def linear(cls, num_experts: int, ep_size: int = 1, ep_rank: int = 0) -> ExpertPlacement:
        """vLLM's linear placement: equal shares, the first ranks take the remainder."""
        base, remainder = divmod(num_experts, ep_size)
        return cls(tuple(base + (r < remainder) for r in range(ep_size)), ep_rank)

    @property
    def num_experts(self) -> int:
        """Physical experts over all ranks, redundant ones included."""
        return sum(self.counts)

    @property
    def num_local(self) -> int:
        """Experts on this rank."""
        return self.counts[self.rank]

    @property
    def first_local(self) -> int:
        """Id of this rank's first expert."""
        return sum(self.counts[: self.rank])

    @property
    def is_even(self) -> bool:
        """True when all ranks hold the same number of experts (the dispatch/combine operators demand it)."""
        return len(set(self.counts)) == 1
