# SPDX-License-Identifier: Apache-2.0
"""Refuses a forced MoE communication method or an ``HCCL_BUFFSIZE`` that cannot work, before a process is started.

Reads the model's own configuration, since no layer exists yet. What that does not tell is left to the workers, whose check
of the same limits (``facts.selector_of``) sees the layers themselves.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.limits import MoEFacts
from vllm_ascend_patch.core.moe.model_facts import ModelFacts, has_experts
from vllm_ascend_patch.core.moe.selection import check_start_up
from vllm_ascend_patch.core.moe.soc import detect_soc, dispatch_operator_version

from .facts import hccl_buffsize, num_nodes, scheduler_facts

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)


def check_moe(vllm_config: VllmConfig) -> None:
    """Raise ``MoELimitError`` for a deployment whose MoE layers could not run as configured; needs a visible NPU."""
    import torch_npu

    model = vllm_config.model_config
    if model is None or not has_experts(model.hf_config.to_dict()) or torch_npu.npu.device_count() == 0:
        return
    facts = facts_of(vllm_config)
    if facts is not None:
        check_start_up(facts, scheduler_facts(vllm_config), envs.VLLM_ASCEND_PATCH_MOE_COMM)


def facts_of(vllm_config: VllmConfig) -> MoEFacts | None:
    """The constants of the model's MoE layers; None, with a line in the log, where its configuration does not tell."""
    config, parallel = vllm_config.model_config, vllm_config.parallel_config
    dtype = str(config.dtype).removeprefix("torch.")
    try:
        model = ModelFacts.from_config(config.model, {**config.hf_config.to_dict(), "dtype": dtype})
    except MoEConfigError as error:
        logger.info("The limits of the MoE communication methods are checked when the workers start: %s", error)
        return None
    ranks = parallel.tensor_parallel_size * parallel.data_parallel_size
    return MoEFacts(
        soc=detect_soc(),
        operator_version=dispatch_operator_version(),
        tp_size=parallel.tensor_parallel_size,
        dp_size=parallel.data_parallel_size,
        ep_size=ranks if parallel.enable_expert_parallel else 1,
        num_experts=model.num_experts + _redundant_experts(parallel),
        hidden_size=model.hidden_size,
        top_k=model.top_k,
        dtype=dtype,
        num_nodes=num_nodes(parallel),
        hccl_buffsize_mib=hccl_buffsize(),
        quantized=model.quantized,
    )


def _redundant_experts(parallel: Any) -> int:
    """Where the release keeps the number; 0 in releases without redundant experts."""
    owner = getattr(parallel, "eplb_config", parallel)
    return getattr(owner, "num_redundant_experts", 0) or 0
