# SPDX-License-Identifier: Apache-2.0
"""What the choice of an MoE communication method depends on, read from vLLM's configuration, and from a layer once there
is one; and the refusals that follow from it.

One selector per model runner and set of facts, so that a choice is logged once and counted in one place.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.moe.arithmetic import even_parts
from vllm_ascend_patch.core.moe.capacity import SchedulerFacts
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.limits import MoEFacts, mc2_violations
from vllm_ascend_patch.core.moe.model_facts import ModelFacts, has_experts
from vllm_ascend_patch.core.moe.selection import AUTO, MethodSelector, check_start_up
from vllm_ascend_patch.core.moe.soc import detect_soc, dispatch_operator_version
from vllm_ascend_patch.core.moe.topology import Topology
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import has_graphs, hccl_buffsize, int8_experts, largest_graph, num_nodes

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)


def selector_of(layer: Any, layout: Topology, quantized: bool) -> MethodSelector:
    """The selector for a layer; raises ``MoELimitError`` when a forced method or ``HCCL_BUFFSIZE`` cannot work."""
    config = config_of_layers()
    facts = _facts(
        config,
        tp_size=layout.tp.size,
        dp_size=layout.dp.size,
        ep_size=layout.ep.size,
        num_experts=layer.global_num_experts,
        hidden_size=layer.moe_config.hidden_dim,
        top_k=layer.moe_config.experts_per_token,
        quantized=quantized,
        sequence_parallel=layout.sequence_parallel,
        ranks_per_host=layout.ranks_per_host,
    )
    selectors = serving.current().moe.selectors
    key = facts, scheduler_facts(config), envs.VLLM_ASCEND_PATCH_MOE_COMM
    if key not in selectors:
        selectors[key] = MethodSelector(*key)
    return selectors[key]


def check_moe(vllm_config: VllmConfig) -> None:
    """Raise ``MoELimitError`` for a deployment whose MoE layers could not run as configured, before a process is started.

    Reads the model's own configuration, since no layer exists yet. What that does not tell is left to the workers, whose
    check of the same limits (``selector_of``) sees the layers themselves. Needs a visible NPU.
    """
    import torch_npu

    model = vllm_config.model_config
    if model is None or not has_experts(model.hf_config.to_dict()) or torch_npu.npu.device_count() == 0:
        return
    facts = facts_of(vllm_config)
    if facts is None:
        return
    scheduler, forced = scheduler_facts(vllm_config), envs.VLLM_ASCEND_PATCH_MOE_COMM
    capacity = check_start_up(facts, scheduler, forced)
    possible = forced == AUTO and not mc2_violations(facts, any_release=not facts.newest_limits)
    if possible and facts.hccl_buffsize_mib is not None and capacity.hccl_floor_mib < capacity.full_floor_mib:
        logger.info("MC2 takes up to %d tokens per rank: %s", capacity.rows, capacity.limited_by)


def facts_of(vllm_config: VllmConfig) -> MoEFacts | None:
    """The constants of the model's MoE layers; None, with a line in the log, where its configuration does not tell."""
    config, parallel = vllm_config.model_config, vllm_config.parallel_config
    try:
        values = {**config.hf_config.to_dict(), "dtype": _dtype(vllm_config)}
        model = ModelFacts.from_config(config.model, values, int8_experts(vllm_config))
    except MoEConfigError as error:
        logger.info("The limits of the MoE communication methods are checked when the workers start: %s", error)
        return None
    ranks, hosts = parallel.tensor_parallel_size * parallel.data_parallel_size, num_nodes(parallel)
    if not parallel.enable_expert_parallel:
        ranks = 1
    return _facts(
        vllm_config,
        tp_size=parallel.tensor_parallel_size,
        dp_size=parallel.data_parallel_size,
        ep_size=ranks,
        num_experts=model.num_experts + redundant_experts(parallel),
        hidden_size=model.hidden_size,
        top_k=model.top_k,
        quantized=model.quantized,
        # The workers, which meet, know; which of these many follow each other decides nothing that is checked here.
        ranks_per_host=even_parts(ranks, hosts) if 1 < hosts <= ranks else (),
    )


def scheduler_facts(config: Any) -> SchedulerFacts:
    """What bounds the tokens of a step, from vLLM's configuration."""
    scheduler, compilation = config.scheduler_config, config.compilation_config
    speculative = config.speculative_config
    drafts = (speculative.num_speculative_tokens or 0) if speculative is not None else 0
    return SchedulerFacts(
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
        tokens_per_decode=1 + drafts,
        max_captured_tokens=largest_graph(compilation) if has_graphs(compilation) else 0,
    )


def _facts(config: Any, **sizes: Any) -> MoEFacts:
    return MoEFacts(
        soc=detect_soc(),
        operator_version=dispatch_operator_version(),
        dtype=_dtype(config),
        num_nodes=num_nodes(config.parallel_config),
        hccl_buffsize_mib=hccl_buffsize(),
        links=envs.VLLM_ASCEND_PATCH_LINKS,
        **sizes,
    )


def _dtype(config: Any) -> str:
    return str(config.model_config.dtype).removeprefix("torch.")


def config_of_layers() -> Any:
    """The configuration that a layer is built under; the runner's own in releases that load weights outside of any."""
    import vllm.config

    # Releases without this function make a default configuration where there is no current one.
    current = getattr(vllm.config, "get_current_vllm_config_or_none", lambda: None)()
    return current if current is not None and current.model_config is not None else serving.current().config


def redundant_experts(parallel: Any) -> int:
    """Where the release keeps the number; 0 in releases without redundant experts."""
    owner = getattr(parallel, "eplb_config", parallel)
    return getattr(owner, "num_redundant_experts", 0) or 0
