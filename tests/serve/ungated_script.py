# SPDX-License-Identifier: Apache-2.0
"""Script: makes vLLM's configuration of experts for each activation it knows, and reports which ones it accepts."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)

from tests.support.processes import report


def accepted(activation: MoEActivation) -> bool:
    try:
        FusedMoEConfig(
            num_experts=8,
            experts_per_token=2,
            hidden_dim=64,
            intermediate_size=64,
            num_local_experts=8,
            num_logical_experts=8,
            activation=activation,
            device="npu",
            routing_method=RoutingMethodType.Default,
            moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
            in_dtype=torch.bfloat16,
        )
    except NotImplementedError:
        return False
    return True


if __name__ == "__main__":
    with set_current_vllm_config(VllmConfig()):
        report({activation.value: accepted(activation) for activation in MoEActivation})
