# SPDX-License-Identifier: Apache-2.0
"""Real processes in a real gloo group for the dispatch and combine kernels, on CPU tensors; none outlives its test."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

PATIENCE = 90.0  # seconds until a world counts as hung


@dataclass(frozen=True)
class Place:
    """A communicator as the kernels want it."""

    rank: int
    size: int
    process_group: dist.ProcessGroup


@dataclass(frozen=True)
class Operators:
    """The four operators, and how tensors get to where they run and back."""

    dispatch: Callable[..., Any]
    combine: Callable[..., Any]
    dispatch_v1: Callable[..., Any]
    combine_v1: Callable[..., Any]
    group: str


def _cpu_operators(place: Place) -> Operators:
    """The kernels themselves, with the group of this world behind the communicator's name."""
    from vllm_ascend_patch.virtual_npu.kernels import combine, dispatch, ep_exchange

    ep_exchange.connect = lambda name: place
    ep_exchange.TIMEOUT = timedelta(seconds=4)
    return Operators(
        dispatch.moe_distribute_dispatch_v2,
        combine.moe_distribute_combine_v2,
        dispatch.moe_distribute_dispatch,
        combine.moe_distribute_combine,
        "ep",
    )


def _process(rank: int, size: int, folder: str, scenario: str, arguments: dict[str, Any], results: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(f"{folder}/store", size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=30))
        operators = _cpu_operators(Place(rank, size, dist.distributed_c10d._get_default_group()))
        module = importlib.import_module("tests.virtual_npu.kernels.ep_scenarios")
        results.put((rank, None, getattr(module, scenario)(operators, rank, size, **arguments)))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {error}", traceback.format_exc()))
    # A scenario may leave a rank waiting on purpose: no farewell, the parent ends everyone.


def run(size: int, folder: Path, scenario: str, soc: str = "A2", **arguments: Any) -> list[tuple[str | None, Any]]:
    """Run ``ep_scenarios.<scenario>`` on every rank; (error or None, result or traceback) by rank."""
    before = {name: os.environ.get(name) for name in ("VIRTUAL_NPU_SOC", "HCCL_BUFFSIZE")}
    os.environ["VIRTUAL_NPU_SOC"] = soc
    os.environ["HCCL_BUFFSIZE"] = str(arguments.pop("buffer_mb", 200))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, size, str(folder), scenario, arguments, results), daemon=True)
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.start()
        outcome: dict[int, tuple[str | None, Any]] = {}
        for _ in range(size):
            rank, error, value = results.get(timeout=PATIENCE)
            outcome[rank] = (error, value)
        return [outcome[rank] for rank in range(size)]
    finally:
        for process in processes:
            process.kill()
            process.join()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def succeed(size: int, folder: Path, scenario: str, soc: str = "A2", **arguments: Any) -> list[Any]:
    """Run a scenario that must succeed on every rank; its results by rank."""
    outcome = run(size, folder, scenario, soc, **arguments)
    failures = [f"rank {rank}: {value}" for rank, (error, value) in enumerate(outcome) if error]
    assert not failures, "\n".join(failures)
    return [value for _, value in outcome]
