# SPDX-License-Identifier: Apache-2.0
"""Real processes for dispatch and combine: the kernels over gloo, or torch_npu's operators over hccl on virtual NPUs.

No process outlives its test.
"""

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

PATIENCE = 200.0  # seconds until a world counts as hung


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
    return Operators(
        dispatch.moe_distribute_dispatch_v2,
        combine.moe_distribute_combine_v2,
        dispatch.moe_distribute_dispatch,
        combine.moe_distribute_combine,
        "ep",
    )


def _npu_operators(rank: int) -> Operators:
    """The real operators of torch_npu, on this process's virtual NPU, over the default hccl group."""
    import torch_npu

    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("npu"))

    def move(value: Any, device: str) -> Any:
        if isinstance(value, tuple):
            return tuple(move(item, device) for item in value)
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def on_device(operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            there = {name: move(value, "npu") for name, value in kwargs.items()}
            result = operator(*move(args, "npu"), **there)
            if "dispatch" in str(operator):
                _compare_with_meta(
                    operator, move(args, "meta"), {n: move(v, "meta") for n, v in kwargs.items()}, result
                )
            return move(result, "cpu")

        return call

    return Operators(
        on_device(torch_npu.npu_moe_distribute_dispatch_v2),
        on_device(torch_npu.npu_moe_distribute_combine_v2),
        on_device(torch_npu.npu_moe_distribute_dispatch),
        on_device(torch_npu.npu_moe_distribute_combine),
        backend.get_hccl_comm_name(rank),
    )


def _compare_with_meta(operator: Callable[..., Any], args: Any, kwargs: dict[str, Any], result: Any) -> None:
    """Shapes and dtypes of a dispatch must be those of the wheel's Meta kernel."""
    expected = [(tuple(tensor.shape), tensor.dtype) for tensor in operator(*args, **kwargs)]
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in result] == expected


def _process(
    rank: int, size: int, folder: str, scenario: str, arguments: dict[str, Any], results: Any, device: bool
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(f"{folder}/store", size)
        wait = timedelta(seconds=120)
        if device:
            import torch_npu

            torch_npu.npu.set_device(rank)
            dist.init_process_group("hccl", store=store, rank=rank, world_size=size, timeout=wait)
            operators = _npu_operators(rank)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
            operators = _cpu_operators(Place(rank, size, dist.distributed_c10d._get_default_group()))
        module = importlib.import_module("tests.virtual_npu.kernels.ep_scenarios")
        results.put((rank, None, getattr(module, scenario)(operators, rank, size, **arguments)))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {error}", traceback.format_exc()))
    # A scenario may leave a rank waiting on purpose: no farewell, the parent ends everyone.


def run(size: int, folder: Path, scenario: str, soc: str = "A2", **arguments: Any) -> list[tuple[str | None, Any]]:
    """Run ``ep_scenarios.<scenario>`` on every rank; (error or None, result or traceback) by rank.

    ``device=True`` runs torch_npu's operators over hccl; the process must have been started by the launcher.
    """
    device = arguments.pop("device", False)
    before = {name: os.environ.get(name) for name in ("VIRTUAL_NPU_SOC", "HCCL_BUFFSIZE", "HCCL_EXEC_TIMEOUT")}
    os.environ["HCCL_EXEC_TIMEOUT"] = str(arguments.pop("timeout", 60))
    os.environ["VIRTUAL_NPU_SOC"] = soc
    os.environ["HCCL_BUFFSIZE"] = str(arguments.pop("buffer_mb", 200))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(
            target=_process, args=(rank, size, str(folder), scenario, arguments, results, device), daemon=True
        )
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
