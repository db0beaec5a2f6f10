# SPDX-License-Identifier: Apache-2.0
"""Puts ``core/moe``'s experts behind vLLM's MoE method classes on an out-of-tree device.

vLLM instantiates the registered subclass in place of its own class; routing, shared experts and gates stay upstream's.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.utils import replace_parameter

from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.seams import moe_forward
from vllm_ascend_patch.seams.moe_topology import placement_of, topology_of

_EXPERTS = "_ascend_expert_weights"


class NPUExperts:
    """What vLLM asks of an MoE method whose experts run through ``core/moe``; mixed into its method classes.

    Tokens arrive unrouted-over-ranks (``supports_internal_mk``): the communication method brings them to their experts.
    """

    is_monolithic = False
    supports_internal_mk = True
    mk_can_overlap_shared_experts = False
    topk_indices_dtype = torch.int32

    def apply(self, layer: Any, x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, **_: Any) -> Any:
        """``[T, H]`` -> ``[T, H]``: routed experts of this layer, summed over all ranks."""
        layout = topology_of(layer.moe_config)
        placement = placement_of(layer, layout)
        step = moe_forward.active_step()
        return fused_moe(
            moe_forward.method(step.method, layout, placement),
            x,
            topk_weights,
            topk_ids,
            getattr(layer, _EXPERTS),
            step,
            apply_router_weight_on_input=bool(getattr(layer, "apply_router_weight_on_input", False)),
        )


class NPUUnquantizedFusedMoEMethod(NPUExperts, UnquantizedFusedMoEMethod):
    """Experts in bfloat16 or float16."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Bring the loaded weights into the grouped matmul's layout, once; the parameters then hold that layout."""
        if self.moe.has_bias:
            raise NotImplementedError("experts with biases are not supported on Ascend NPUs by this port")
        weights = ExpertWeights.from_loaded(
            layer.w13_weight.data, layer.w2_weight.data, activation=_activation_name(layer.activation)
        )
        replace_parameter(layer, "w13_weight", weights.w13)
        replace_parameter(layer, "w2_weight", weights.w2)
        setattr(layer, _EXPERTS, weights)


def _activation_name(activation: Any) -> str:
    return getattr(activation, "value", activation)


def register_methods() -> None:
    """Register the classes with vLLM, once per process; called when a worker starts."""
    from vllm.model_executor.custom_op import op_registry_oot

    if UnquantizedFusedMoEMethod.__name__ not in op_registry_oot:
        UnquantizedFusedMoEMethod.register_oot(NPUUnquantizedFusedMoEMethod, name=UnquantizedFusedMoEMethod.__name__)
