# SPDX-License-Identifier: Apache-2.0
"""The backend ``hccl`` of torch.distributed on virtual NPUs, and the look-up of communicators by their HCCL name.

The collectives themselves are C++ (csrc/torch/hccl_*.cpp) over connections made by gloo. Here it is created and found.
"""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .extension import load

#: The longest communicator name that operators taking one accept (HCCL: 127 characters and the terminator).
MAX_NAME = 127


@dataclass(frozen=True)
class Communicator:
    """One process group of this process, as operators that take an HCCL communicator name see it.

    Attributes:
        name: what ``get_hccl_comm_name`` returned, the same on all ranks.
        rank: this process's rank in the group.
        size: number of ranks.
        process_group: the backend: send, recv, alltoall_base, allgather, ... on tensors of a host or an NPU.
        global_ranks: ``global_ranks[i]`` is the world's rank of group rank i.
    """

    name: str
    rank: int
    size: int
    process_group: Any
    global_ranks: tuple[int, ...]


_communicators: dict[str, Communicator] = {}


def communicator(name: str) -> Communicator:
    """The communicator with this HCCL name. Raises RuntimeError when this process is in no such group (any more)."""
    found = _communicators.get(name)
    if found is None or found.process_group.closed:
        known = [other.name for other in _communicators.values() if not other.process_group.closed]
        raise RuntimeError(f"there is no HCCL communicator {name!r} in this process; it has {known or 'none'}")
    return found


def _communicator_name(store: dist.Store, rank: int, group: str) -> str:
    """A name that only this group has; rank 0 makes it and the others read it."""
    key = "virtual_hccl_name"
    if rank == 0:
        store.set(key, f"virtual_hccl_{uuid.uuid4().hex[:16]}_{group}"[:MAX_NAME])
    return store.get(key).decode()


def _create(options: Any, pg_options: Any) -> Any:
    """torch.distributed's hook: the backend for the group that ``options`` (DistributedBackendOptions) describes."""
    store = dist.PrefixStore("virtual_hccl", options.store)
    rank, size = options.group_rank, options.group_size
    timeout: timedelta = options.timeout
    links = dist.ProcessGroupGloo(store, rank, size, timeout)
    name = _communicator_name(store, rank, options.group_id)
    global_ranks = list(options.global_ranks_in_group) or list(range(size))
    known_options = pg_options if isinstance(pg_options, torch._C._distributed_c10d.Backend.Options) else None
    backend = load().ProcessGroupHCCL(
        links=links,
        rank=rank,
        size=size,
        timeout=timeout,
        communicator=name,
        global_ranks=global_ranks,
        options=known_options,
    )
    for other in [known for known in _communicators.values() if known.process_group.closed]:
        del _communicators[other.name]
    _communicators[name] = Communicator(name, rank, size, backend, tuple(global_ranks))
    return backend


def register_backend() -> None:
    """Put this backend in the place of torch_npu's own ``hccl``."""
    if dist.is_available():
        dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["npu"])
