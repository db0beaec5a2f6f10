# SPDX-License-Identifier: Apache-2.0
"""Starts a worker's step sync from vLLM's configuration and process groups, when its model runner has been built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from vllm_ascend_patch import envs
from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.dp import DPSession, DPSyncError, startup
from vllm_ascend_patch.core.dp.startup import Groups, SessionConfig, start_session
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import uses_runner_v2

from . import landmarks
from .fingerprint import fingerprint

_DEVICE_BUFFER_MB = 16
"""HCCL communication buffer of the metadata group. HCCL's default is 200 MB per communicator and direction, taken from
the memory for the KV cache; the payload is below 64 KB."""


def model_runner_init(original: Callable[..., None], runner: Any, *args: Any, **kwargs: Any) -> None:
    """Upstream's constructor, then the step sync. Every worker of a deployment comes through here once, in lockstep."""
    original(runner, *args, **kwargs)
    state = serving.entering(runner)
    state.session = start(runner.vllm_config, runner.device, state.patches)


def open_trace(data_parallel_rank: int) -> None:
    """Begin the step trace that the user asked for. Raises ``envs.EnvError`` where it cannot be written."""
    path = envs.VLLM_ASCEND_PATCH_TRACE
    if not path:
        return
    rank = dist.get_rank() if dist.is_initialized() else 0
    try:
        trace.start(path, rank, f"rank {rank} (DP {data_parallel_rank})")
    except OSError as error:
        raise envs.EnvError(
            f"VLLM_ASCEND_PATCH_TRACE={path}: {error.filename} cannot be written ({error.strerror}); name a file where "
            "the workers may write, or leave the variable empty"
        ) from None


def start(vllm_config: Any, device: torch.device, patches: Sequence[str] = ()) -> DPSession | None:
    """Build the step sync of one runner; without data parallelism there is none. Also opens the trace.

    Args:
        vllm_config: vLLM's configuration.
        device: the runner's NPU.
        patches: ids of the patches that this process has; they must be the same on all ranks.
    """
    from vllm.distributed.parallel_state import get_dp_group

    parallel = vllm_config.parallel_config
    open_trace(parallel.data_parallel_rank)
    if parallel.data_parallel_size == 1 or get_dp_group().world_size == 1:
        return None
    if getattr(parallel, "enable_elastic_ep", False):
        raise DPSyncError(
            "elastic expert parallelism replaces process groups while serving, which the data-parallel step sync does not "
            "follow; start without --enable-elastic-ep"
        )
    group = get_dp_group()
    config = _config(vllm_config, device, patches, name=f"group{group.ranks[0]}")
    with_device = config.transport in ("auto", "device") and device.type != "cpu"
    return start_session(
        config, _store(), group.rank_in_group, group.world_size, lambda: _own_groups(group, with_device), device
    )


def compare_settings(vllm_config: Any, device: torch.device, patches: Sequence[str]) -> None:
    """Find ranks that were started differently when the processes have found each other and no group has been made: layout
    and load balancing decide how many groups upstream makes. Nothing without data parallelism."""
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size == 1 or getattr(parallel, "enable_elastic_ep", False):  # the latter is refused later
        return
    startup.compare_settings(_config(vllm_config, device, patches), _store(), device)


def _config(vllm_config: Any, device: torch.device, patches: Sequence[str], name: str = "") -> SessionConfig:
    return SessionConfig(
        transport=envs.VLLM_ASCEND_PATCH_DP_SYNC,
        timeout=envs.VLLM_ASCEND_PATCH_DP_TIMEOUT,
        num_microbatches=max(2, int(getattr(vllm_config.parallel_config, "num_ubatches", 2) or 2)),
        fingerprint=fingerprint(vllm_config, device, patches),
        name=name,
        landmarks=landmarks.WORKER,
        padding_when_eager=not uses_runner_v2(vllm_config),
    )


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _own_groups(group: Any, with_device: bool) -> Groups:
    """Process groups with the ranks of the data-parallel group that only the step sync uses.

    Every process of the job creates every group, in the same order; each keeps its own.
    """
    from vllm.distributed.parallel_state import get_world_group

    world = get_world_group()
    all_ranks: list[Any] = [None] * world.world_size
    dist.all_gather_object(all_ranks, list(group.ranks), group=world.cpu_group)
    own = None
    for ranks in sorted({tuple(ranks) for ranks in all_ranks}):
        cpu_group = dist.new_group(list(ranks), backend="gloo")
        device_group = _device_group(list(ranks), group) if with_device else None
        if tuple(group.ranks) == ranks:
            own = Groups(cpu_group, device_group)
    assert own is not None
    return own


def _device_group(ranks: list[int], like: Any) -> dist.ProcessGroup:
    backend = dist.get_backend(like.device_group)
    options = None
    if backend == "hccl":
        import torch_npu

        options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
        options.hccl_config = {"hccl_buffer_size": _DEVICE_BUFFER_MB}
    return dist.new_group(ranks, backend=backend, pg_options=options)
