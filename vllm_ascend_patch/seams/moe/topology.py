# SPDX-License-Identifier: Apache-2.0
"""Reads vLLM's parallel groups and an MoE layer's configuration into ``core/moe``'s own values.

The only place that knows the names of vLLM's groups and of its MoE parallel configuration.
"""

from __future__ import annotations

from typing import Any

from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology
from vllm_ascend_patch.seams import serving


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
    return Topology(tp, dp, ep, sequence_parallel, _mc2_communicator() if ep.size > 1 else None)


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
