# SPDX-License-Identifier: Apache-2.0
"""Real processes for dispatch and combine: the kernels over gloo, or torch_npu's operators over hccl on virtual NPUs.

No process outlives its test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tests.support.ranks import run_ranks

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


def _scenario(rank: int, size: int, scenario: str, arguments: dict[str, Any], device: bool) -> Any:
    group = dist.distributed_c10d._get_default_group()
    operators = _npu_operators(rank) if device else _cpu_operators(Place(rank, size, group))
    return getattr(importlib.import_module("tests.virtual_npu.kernels.ep_scenarios"), scenario)(
        operators, rank, size, **arguments
    )


def run(size: int, scenario: str, soc: str = "A2", **arguments: Any) -> list[tuple[str | None, Any]]:
    """Run ``ep_scenarios.<scenario>`` on every rank; (error or None, result or traceback) by rank.

    ``device=True`` runs torch_npu's operators over hccl; the process must have been started by the launcher.
    """
    device = arguments.pop("device", False)
    environment = {
        "HCCL_EXEC_TIMEOUT": str(arguments.pop("timeout", 60)),
        "VIRTUAL_NPU_SOC": soc,
        "HCCL_BUFFSIZE": str(arguments.pop("buffer_mb", 200)),
    }
    outcomes = run_ranks(
        _scenario,
        size,
        scenario,
        arguments,
        device,
        group="hccl" if device else "gloo",
        start="forkserver",
        together=True,  # a scenario may leave a rank waiting on purpose
        environment=environment,
        timeout=PATIENCE,
    )
    return [(outcome.error, outcome.trace if outcome.error else outcome.value) for outcome in outcomes]


def succeed(size: int, scenario: str, soc: str = "A2", **arguments: Any) -> list[Any]:
    """Run a scenario that must succeed on every rank; its results by rank."""
    outcome = run(size, scenario, soc, **arguments)
    failures = [f"rank {rank}: {value}" for rank, (error, value) in enumerate(outcome) if error]
    assert not failures, "\n".join(failures)
    return [value for _, value in outcome]
