# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, a torch_npu whose operators do not take what this package passes to them.

What is passed is ``core/operator_calls.py``'s table; this file reads the installed schemas and what of them a model needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch_npu

from vllm_ascend_patch.core import operator_calls
from vllm_ascend_patch.core.model_traits import ModelTraits
from vllm_ascend_patch.core.moe.model_facts import has_experts
from vllm_ascend_patch.core.moe.soc import dispatch_operator_version
from vllm_ascend_patch.core.operator_calls import Argument

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_operators(vllm_config: VllmConfig, model: ModelTraits) -> None:
    """Raise ``ValueError`` naming every operator, and what of it does not fit, that serving ``model`` would call."""
    uses = [operator_calls.LATENT_ATTENTION if model.latent else operator_calls.ATTENTION]
    if has_experts(vllm_config.model_config.hf_config.to_dict()):
        uses.append(operator_calls.EXPERTS)
        if vllm_config.parallel_config.enable_expert_parallel and dispatch_operator_version() == 2:
            uses.append(operator_calls.MC2)
    if vllm_config.model_config.quantization is not None:
        uses.append(operator_calls.INT8)
    if model.weights is not None and any(group.w4a16 for group in model.weights.groups):
        uses.append(operator_calls.INT4)
    unfit = operator_calls.unfit_calls(installed_schemas(), uses)
    if unfit:
        raise ValueError(
            f"torch_npu {torch_npu.__version__} does not take what this port calls it with: {'; '.join(unfit)}. Install the "
            "torch_npu that docs/install.md has for this release of vLLM."
        )


def installed_schemas() -> dict[str, list[list[Argument]]]:
    """The schemas of the installed torch_npu of every operator that the package calls."""
    return {name: _overloads(name) for name in operator_calls.operators()}


def _overloads(name: str) -> list[list[Argument]]:
    packet = getattr(torch.ops.npu, name, None)
    if packet is None:
        return []
    schemas = (getattr(packet, overload)._schema for overload in packet.overloads())
    return [[Argument(a.name, not a.has_default_value()) for a in schema.arguments] for schema in schemas]
