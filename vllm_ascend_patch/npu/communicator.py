# SPDX-License-Identifier: Apache-2.0
"""Collectives of one process group on NPUs, as vLLM's group coordinator calls them.

Adds to upstream's base class what it leaves out: gathers and scatters of uneven sizes, and the all-to-all manager that
vLLM asks for with expert parallelism. The MoE methods do their own communication (``core/moe``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase


class NPUCommunicator(DeviceCommunicatorBase):
    """``hccl`` collectives over ``device_group``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.use_all2all:
            from vllm.distributed.device_communicators import all2all

            # vLLM's own manager, for what it still moves itself; the oldest releases have only the first one.
            manager = getattr(all2all, "AgRsAll2AllManager", None) or all2all.NaiveAll2AllManager
            self.all2all_manager = manager(self.cpu_group)

    def all_gatherv(
        self, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Concatenate every rank's rows, ``sizes[rank]`` of them (all equal when ``sizes`` is None)."""
        if dim != 0:
            raise NotImplementedError(f"all_gatherv along dimension {dim}: only 0 is supported")
        if isinstance(input_, list):
            return [self._all_gatherv_one(tensor, sizes) for tensor in input_]
        return self._all_gatherv_one(input_, sizes)

    def _all_gatherv_one(self, input_: torch.Tensor, sizes: list[int] | None) -> torch.Tensor:
        rows = input_.shape[0]
        if sizes is None or len(set(sizes)) == 1:
            output = input_.new_empty((rows * self.world_size, *input_.shape[1:]))
            dist.all_gather_into_tensor(output, input_.contiguous(), group=self.device_group)
            return output
        # HCCL gathers equal parts only: pad to the largest, then drop the padding.
        largest = max(sizes)
        padded = input_.new_zeros((largest, *input_.shape[1:]))
        padded[:rows] = input_
        gathered = input_.new_empty((self.world_size, largest, *input_.shape[1:]))
        dist.all_gather_into_tensor(gathered.view(-1, *input_.shape[1:]), padded, group=self.device_group)
        return torch.cat([gathered[rank, :size] for rank, size in enumerate(sizes)])

    def reduce_scatterv(self, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
        """Sum over ranks, then keep this rank's ``sizes[rank]`` rows of dimension ``dim``."""
        if sizes is None or len(set(sizes)) == 1:
            return self.reduce_scatter(input_, dim)
        dim = dim % input_.dim()
        if dim != 0:
            raise NotImplementedError(f"reduce_scatterv along dimension {dim} with uneven sizes: only 0 is supported")
        largest = max(sizes)
        padded = input_.new_zeros((self.world_size, largest, *input_.shape[1:]))
        for rank, part in enumerate(input_.split(sizes)):
            padded[rank, : sizes[rank]] = part
        output = input_.new_empty((largest, *input_.shape[1:]))
        dist.reduce_scatter_tensor(output, padded.view(-1, *input_.shape[1:]), group=self.device_group)
        return output[: sizes[self.rank_in_group]]

    def dispatch_router_logits(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kw: Any
    ) -> Any:
        """Tokens of all ranks, unless a layer is running whose experts gather them: that is ``core/moe``'s then."""
        if _experts_communicate(*args, **kw):
            return hidden_states, router_logits
        return self._manager().dispatch_router_logits(hidden_states, router_logits, *args, **kw)

    def dispatch(self, hidden_states: torch.Tensor, *args: Any, **kw: Any) -> Any:
        """As ``dispatch_router_logits``, by its older name."""
        if args and _experts_communicate(*args[1:], **kw):
            return hidden_states, args[0]
        return self._manager().dispatch(hidden_states, *args, **kw)

    def combine(self, hidden_states: torch.Tensor, *args: Any, **kw: Any) -> Any:
        """Undo ``dispatch``: this rank's rows, summed over ranks."""
        if _experts_communicate():
            return hidden_states
        return self._manager().combine(hidden_states, *args, **kw)

    def _manager(self) -> Any:
        if self.all2all_manager is None:
            raise RuntimeError(f"the process group {self.unique_name!r} is not the expert-parallel one")
        return self.all2all_manager


def _experts_communicate(*_: Any, extra_tensors: Any = None, **__: Any) -> bool:
    """Whether the running MoE layer moves tokens itself. Other tensors to move along are not ours."""
    from vllm_ascend_patch.seams.moe.forward import running

    return running() and extra_tensors is None
