# SPDX-License-Identifier: Apache-2.0
"""Reads vLLM's parallel groups and an MoE layer's configuration into ``core/moe``'s own values.

The only place that knows the names of vLLM's groups and of its MoE parallel configuration.
"""

from __future__ import annotations

import socket
from itertools import groupby
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import num_nodes


def _axis(coordinator: Any) -> ParallelAxis:
    return ParallelAxis(coordinator.world_size, coordinator.rank_in_group, coordinator.device_group)


def topology(expert_parallel: bool, sequence_parallel: bool) -> Topology:
    """This rank's place in vLLM's TP, DP and EP groups; one object per model runner and layout."""
    known, key = serving.current().moe.topologies, (expert_parallel, sequence_parallel)
    if key not in known:
        known[key] = _topology(*key)
    return known[key]


def _topology(expert_parallel: bool, sequence_parallel: bool) -> Topology:
    from vllm.distributed import parallel_state

    tp, dp = _axis(parallel_state.get_tp_group()), _axis(parallel_state.get_dp_group())
    ep = _axis(parallel_state.get_ep_group()) if expert_parallel else ParallelAxis()
    if ep.size == 1:
        return Topology(tp, dp, ep, sequence_parallel)
    return Topology(tp, dp, ep, sequence_parallel, _mc2_communicator(), _ranks_per_host())


def _ranks_per_host() -> tuple[int, ...]:
    """Expert parallel ranks of each host. Collective where ranks are told of several hosts: all of them are, or none."""
    from vllm.distributed import parallel_state

    if num_nodes(serving.current().config.parallel_config) == 1:
        return ()
    group = parallel_state.get_ep_group()
    hosts: list[Any] = [None] * group.world_size
    dist.all_gather_object(hosts, _this_host(), group=group.cpu_group)
    return in_runs(hosts)


def in_runs(hosts: list[str]) -> tuple[int, ...]:
    """Ranks of each host, from the host of each rank; empty for a single host, and where a host's ranks are not in a row."""
    runs = [len(list(ranks)) for _, ranks in groupby(hosts)]
    return tuple(runs) if 1 < len(runs) == len(set(hosts)) else ()


def _this_host() -> str:
    """The same in all containers of a host, and in no other host: names need be neither."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _mc2_communicator() -> Mc2Communicator:
    from vllm.distributed import parallel_state

    moe = serving.current().moe
    if moe.communicator is None:
        moe.communicator = Mc2Communicator(parallel_state.get_ep_group().device_group)
    return moe.communicator


def topology_of(layer: Any) -> Topology:
    """The topology that an MoE layer of vLLM runs in."""
    parallel = layer.moe_config.moe_parallel_config
    if getattr(parallel, "pcp_size", 1) > 1:
        raise NotImplementedError("MoE layers under prefill context parallelism are not supported on Ascend NPUs")
    # On the layer itself in releases whose configuration does not say.
    owner = layer.moe_config if hasattr(layer.moe_config, "is_sequence_parallel") else layer
    sequence_parallel = bool(getattr(owner, "is_sequence_parallel", False))
    return topology(parallel.use_ep and parallel.ep_size > 1, sequence_parallel)


def placement_of(layer: Any, layout: Topology) -> ExpertPlacement:
    """Which rank holds which of the layer's physical experts; refuses placements that are not contiguous."""
    if not layout.expert_parallel:
        return ExpertPlacement.linear(layer.global_num_experts)
    strategy = getattr(layer, "expert_placement_strategy", None)
    strategy = strategy or getattr(getattr(layer, "expert_map_manager", None), "placement_strategy", "linear")
    if strategy != "linear":
        raise NotImplementedError(
            f"expert placement {strategy!r} is not supported on Ascend NPUs: experts must be contiguous per rank. Set "
            "--expert-placement-strategy linear."
        )
    return ExpertPlacement.linear(layer.global_num_experts, layout.ep.size, layout.ep.rank)
