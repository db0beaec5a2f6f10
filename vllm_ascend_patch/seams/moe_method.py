# SPDX-License-Identifier: Apache-2.0
"""Puts ``core/moe``'s experts behind vLLM's MoE method classes on an out-of-tree device.

vLLM instantiates the registered subclass in place of its own class; routing, shared experts and gates stay upstream's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.utils import replace_parameter

from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology
from vllm_ascend_patch.seams import moe_forward
from vllm_ascend_patch.seams.moe_selection import selector_of
from vllm_ascend_patch.seams.moe_topology import placement_of, topology_of

_RUNTIME = "_ascend_moe"


@dataclass(frozen=True, eq=False)
class LayerRuntime:
    """What one layer's forward needs, made once after its weights are loaded."""

    weights: ExpertWeights
    layout: Topology
    placement: ExpertPlacement
    selector: MethodSelector
    weight_on_input: bool

    @classmethod
    def of(cls, layer: Any, weights: ExpertWeights) -> LayerRuntime:
        layout = topology_of(layer.moe_config)
        on_input = bool(getattr(layer, "apply_router_weight_on_input", False))
        selector = selector_of(layer, layout, weights.quantized)
        return cls(weights, layout, placement_of(layer, layout), selector, on_input)


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
        runtime: LayerRuntime = getattr(layer, _RUNTIME)
        step = moe_forward.active_tokens().step(runtime.selector)
        return fused_moe(
            moe_forward.method(step.method, runtime.layout, runtime.placement),
            x,
            topk_weights,
            topk_ids,
            runtime.weights,
            step,
            apply_router_weight_on_input=runtime.weight_on_input,
        )


class NPUUnquantizedFusedMoEMethod(NPUExperts, UnquantizedFusedMoEMethod):
    """Experts in bfloat16 or float16."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Bring the loaded weights into the grouped matmul's layout, once; the parameters then hold that layout."""
        check_supported(self.moe)
        weights = ExpertWeights.from_loaded(
            layer.w13_weight.data, layer.w2_weight.data, activation=activation_name(layer.activation)
        )
        replace_parameter(layer, "w13_weight", weights.w13)
        replace_parameter(layer, "w2_weight", weights.w2)
        keep_runtime(layer, weights)


def keep_runtime(layer: Any, weights: ExpertWeights) -> None:
    """Remember on the layer what its forward needs; raises when a forced method or ``HCCL_BUFFSIZE`` cannot work."""
    setattr(layer, _RUNTIME, LayerRuntime.of(layer, weights))


def check_supported(moe: Any) -> None:
    """Raise for what upstream's layer can ask for and these experts do not do."""
    if moe.has_bias:
        raise NotImplementedError("experts with biases are not supported on Ascend NPUs by this port")
    if getattr(moe, "skip_final_all_reduce", False):
        raise NotImplementedError(
            "this model wants the unreduced sums of its experts (skip_final_all_reduce), which is not supported on Ascend "
            "NPUs by this port: every communication method returns complete sums"
        )


def activation_name(activation: Any) -> str:
    """vLLM's name of an activation, given as an enum in new releases and as text in old ones."""
    return getattr(activation, "value", activation)


def register_methods() -> None:
    """Register the classes with vLLM, once per process; called when a worker starts."""
    from vllm.model_executor.custom_op import op_registry_oot

    if UnquantizedFusedMoEMethod.__name__ not in op_registry_oot:
        UnquantizedFusedMoEMethod.register_oot(NPUUnquantizedFusedMoEMethod, name=UnquantizedFusedMoEMethod.__name__)
