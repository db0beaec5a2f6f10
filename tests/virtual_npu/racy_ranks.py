# SPDX-License-Identifier: Apache-2.0
"""Racy programs of two ranks, and their repaired twins; each rank checks order. Run by test_order.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch_npu

from tests.support.processes import report
from tests.support.ranks import run_ranks, values_of

from .hccl_checks import NPU, start


def on_two_streams(rank: int, size: int, repaired: bool) -> None:
    """An operator that communicates, on the caller's stream, beside a collective, which has a stream of its own."""
    assert dist.group.WORLD is not None
    backend: Any = dist.group.WORLD._get_backend(torch.device(NPU))
    x = torch.ones(4, 1024, dtype=torch.bfloat16, device=NPU)
    ids = torch.tensor([[0, 1]] * 4, dtype=torch.int32, device=NPU)
    other = torch.ones(16, device=NPU)
    work = backend.allreduce([other], dist.AllreduceOptions())  # earlier
    if repaired:
        work.wait()
    torch_npu.npu_moe_distribute_dispatch_v2(  # later
        x,
        ids,
        group_ep=backend.get_hccl_comm_name(rank),
        ep_world_size=size,
        ep_rank_id=rank,
        moe_expert_num=size,
        global_bs=0,
    )
    work.wait()


def communicators_in_another_order(rank: int, size: int, repaired: bool) -> None:
    """Asynchronous collectives of two groups; a device whose cores both need would stand still."""
    groups: list[Any] = [dist.new_group(backend="hccl")._get_backend(torch.device(NPU)) for _ in range(2)]
    tensors = [torch.ones(16, device=NPU) for _ in groups]
    mine = list(range(2)) if rank == 0 or repaired else [1, 0]
    works = [groups[i].allreduce([tensors[i]], dist.AllreduceOptions()) for i in mine]
    for work in works:
        work.wait()


PROGRAMS: tuple[Callable[[int, int, bool], None], ...] = (on_two_streams, communicators_in_another_order)


def run(rank: int, size: int) -> dict[str, list[str]]:
    """By program, how the repaired twin and then the racy one end on this rank."""
    start(rank, size, seconds=30)
    found = {}
    for program in PROGRAMS:
        ends = []
        for repaired in (True, False):
            try:
                program(rank, size, repaired)
                torch.npu.synchronize()
                ends.append("")
            except RuntimeError as error:
                ends.append(str(error))
        found[program.__name__] = ends
    return found


if __name__ == "__main__":
    report(values_of(run_ranks(run, int(sys.argv[1]), group=None, start="forkserver", together=True, timeout=100)))
