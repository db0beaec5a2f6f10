# SPDX-License-Identifier: Apache-2.0
"""Puts ``core/moe``'s experts behind vLLM's MoE method classes on an out-of-tree device.

vLLM instantiates the registered subclass in place of its own class; routing, shared experts and gates stay upstream's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_ascend_patch.core.moe.activations import Activation
from vllm_ascend_patch.core.moe.comm import make_method
from vllm_ascend_patch.core.moe.comm.base import MoECommMethod
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights, bias_dtype
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology
from vllm_ascend_patch.seams import checkpoint, serving

from . import forward
from .expert_slots import expert_in, slot_loader, slots_of
from .facts import config_of_layers, redundant_experts, selector_of
from .fused_weights import is_fused, keep_fused
from .names import UnquantizedFusedMoEMethod
from .reduction import share, upstream_adds_up
from .routing import route
from .topology import placement_of, topology_of

_RUNTIME = "_ascend_moe"


@dataclass(frozen=True, eq=False)
class LayerRuntime:
    """What one layer's forward needs, made once, besides its weights: these it reads from the layer's parameters each time,
    since that is where a reload and load balancing write."""

    layout: Topology
    placement: ExpertPlacement
    selector: MethodSelector
    activation: Activation
    weight_on_input: bool
    shared: bool
    known: dict[tuple[str, Topology, ExpertPlacement], MoECommMethod[Any, Any]]
    methods: dict[str, MoECommMethod[Any, Any]] = field(default_factory=dict)

    def method(self, name: str) -> MoECommMethod[Any, Any]:
        """The method object called ``name``; layers of the same topology and placement share it."""
        found = self.methods.get(name)
        if found is None:
            key = name, self.layout, self.placement
            if key not in self.known:
                self.known[key] = make_method(*key)
            found = self.methods[name] = self.known[key]
        return found

    @classmethod
    def of(cls, layer: Any, quantized: bool) -> LayerRuntime:
        layout = topology_of(layer)
        on_input = bool(getattr(layer, "apply_router_weight_on_input", False))
        selector = selector_of(layer, layout, quantized)
        known = serving.current().moe.methods
        placement, adds_up = placement_of(layer, layout), upstream_adds_up(layout)
        return cls(layout, placement, selector, activation_of(layer), on_input, adds_up, known)

    @property
    def adds_bias(self) -> bool:
        """Whether this rank's results have the down projection's bias: of ranks with slices of every expert, one adds it."""
        return self.layout.expert_parallel or self.layout.dp.rank == self.layout.tp.rank == 0


class NPUExperts:
    """What vLLM asks of an MoE method whose experts run through ``core/moe``; mixed into its method classes.

    Tokens arrive unrouted-over-ranks (``supports_internal_mk``): the communication method brings them to their experts.
    """

    returns_complete_sums = True
    is_monolithic = False
    supports_internal_mk = True
    mk_can_overlap_shared_experts = False
    mk_owns_shared_expert = False
    topk_indices_dtype = torch.int32
    quantized = False
    moe: Any

    def apply(self, layer: Any, x: torch.Tensor, **arguments: Any) -> Any:
        """``[T, H]`` -> ``[T, H]``: routed experts of this layer, summed over all ranks.

        ``arguments`` hold ``topk_weights`` and ``topk_ids``, or in older releases what routing needs.
        """
        runtime = runtime_of(layer)
        if "topk_ids" in arguments:
            topk_weights, topk_ids = arguments["topk_weights"], arguments["topk_ids"]
        else:
            topk_weights, topk_ids = route(layer, x, arguments)
        step = forward.active_tokens().step(runtime.selector)
        output = fused_moe(
            runtime.method(step.method),
            x,
            topk_weights,
            topk_ids,
            self.weights_of(layer),
            step,
            apply_router_weight_on_input=runtime.weight_on_input,
        )
        return share(output, runtime.layout) if runtime.shared else output

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """Upstream's parameters, biases in the operator's dtype; with expert load balancing, with a loader that knows where
        experts are."""
        parallel = getattr(config_of_layers(), "parallel_config", None)
        if getattr(parallel, "enable_eplb", False):
            slots = layer.global_num_experts
            kwargs["weight_loader"] = slot_loader(layer, slots, slots - redundant_experts(parallel))
        super().create_weights(layer, *args, **kwargs)  # type: ignore[misc]
        for name in ("w13_bias", "w2_bias"):
            bias = getattr(layer, name, None)
            if bias is not None:
                retype(layer, name, bias_dtype(bias.dtype))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded. The parameters stay: what a reload or load balancing writes there is what is served. Only
        the first int8 weights are laid out anew, where their operator wants it."""
        check_supported(self.moe)
        checkpoint.refuse_unwritten(layer, self)
        if is_fused(layer.w13_weight):
            return
        ExpertWeights.from_loaded(
            layer.w13_weight.data,
            layer.w2_weight.data,
            activation=activation_of(layer),
            w13_scale=layer.w13_weight_scale.data if self.quantized else None,
            w2_scale=layer.w2_weight_scale.data if self.quantized else None,
            output_dtype=self.moe.in_dtype if self.quantized else None,
            w13_bias=_data(layer, "w13_bias"),
            w2_bias=_data(layer, "w2_bias"),
        )
        keep_runtime(layer, self.quantized)
        if self.quantized:
            keep_fused(layer, activation_of(layer))

    def weights_of(self, layer: Any) -> ExpertWeights:
        """The layer's parameters as the operators take them; asked for in every forward."""
        runtime = runtime_of(layer)
        w13 = layer.w13_weight
        if self.quantized:
            scales = layer.w13_weight_scale, layer.w2_weight_scale
            return ExpertWeights.of(
                w13, layer.w2_weight, self.moe.in_dtype, *scales, runtime.activation, fused=is_fused(w13)
            )
        w13_bias = getattr(layer, "w13_bias", None)
        w2_bias = getattr(layer, "w2_bias", None) if runtime.adds_bias else None
        return ExpertWeights.of(
            w13, layer.w2_weight, w13.dtype, activation=runtime.activation, w13_bias=w13_bias, w2_bias=w2_bias
        )

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: gate and up projection lie above each other in ``w13``, where it has both and they
        do not come as one tensor."""
        if not name.startswith(("w13_weight", "w2_weight")):
            return ()
        activation = activation_of(layer)
        two = name.startswith("w13") and activation.gated and not activation.interleaved
        return (0, parameter.shape[1] // 2) if two else (0,)

    def loaded(self, layer: Any, arguments: dict[str, Any], parts: int) -> list[tuple[int, int]]:
        """As ``checkpoint.Owner`` has it."""
        part = 1 if arguments["shard_id"] == "w3" else 0
        if arguments["loaded_weight"].dim() == 3:  # all experts in one tensor
            return [(expert, part) for expert in range(layer.w13_weight.shape[0])]
        local = [local_expert(layer, slot) for slot in slots_of(layer, arguments["expert_id"])]
        return [(expert, part) for expert in local if expert >= 0]

    def tensor_name(self, layer: Any, name: str, expert: int, part: int) -> str:
        """As ``checkpoint.Owner`` has it."""
        slot = next(s for s in range(layer.global_num_experts) if local_expert(layer, s) == expert)
        projection = "down" if name.startswith("w2") else ("gate", "up")[part]
        projection = getattr(layer, f"ckpt_{projection}_proj_name", f"{projection}_proj")
        kind = name.partition("_")[2]
        return f"{layer.layer_name}.{expert_in(layer, slot)}.{projection}.{kind}"

    def maybe_make_prepare_finalize(self, *_: Any, **__: Any) -> None:
        """Upstream's modular kernels are not used; asked for in older releases when expert parallelism is on."""

    def init_prepare_finalize(self, *_: Any, **__: Any) -> None:
        """As ``maybe_make_prepare_finalize``, by its oldest name."""


class NPUUnquantizedFusedMoEMethod(NPUExperts, UnquantizedFusedMoEMethod):
    """Experts in bfloat16 or float16."""


def local_expert(layer: Any, slot: int) -> int:
    """The index on this rank of a physical expert; -1 where it is another rank's."""
    return int(layer._map_global_expert_id_to_local_expert_id(slot))


def keep_runtime(layer: Any, quantized: bool) -> None:
    """Remember on the layer what its forward needs; raises when a forced method or ``HCCL_BUFFSIZE`` cannot work.

    Weights that are loaded again leave it as it is: captured graphs use what it holds.
    """
    if not hasattr(layer, _RUNTIME):
        setattr(layer, _RUNTIME, LayerRuntime.of(layer, quantized))


def runtime_of(layer: Any) -> LayerRuntime:
    """What ``keep_runtime`` left on the layer."""
    found: LayerRuntime = getattr(layer, _RUNTIME)
    return found


def check_supported(moe: Any) -> None:
    """Raise for what upstream's layer can ask for and these experts do not do."""
    if getattr(moe, "skip_final_all_reduce", False):
        raise NotImplementedError(
            "this model wants the unreduced sums of its experts (skip_final_all_reduce), which is not supported on Ascend "
            "NPUs by this port: every communication method returns complete sums"
        )


def activation_of(layer: Any) -> Activation:
    """The activation of a layer's experts, with the numbers that the layer has for it."""
    return Activation.of(
        layer.activation,
        alpha=getattr(layer, "swiglu_alpha", None),
        limit=getattr(layer, "swiglu_limit", None),
        bias=getattr(layer, "swiglu_beta", None),
    )


def retype(layer: Any, name: str, dtype: torch.dtype) -> None:
    """Give a parameter the dtype that an operator wants, so that whoever loads it, now or later, writes that."""
    found = getattr(layer, name)
    if found.dtype != dtype:
        parameter = torch.nn.Parameter(found.data.to(dtype), requires_grad=False)
        parameter.__dict__.update(found.__dict__)  # its loader, and what the loader asks it
        setattr(layer, name, parameter)


def _data(layer: Any, name: str) -> torch.Tensor | None:
    parameter = getattr(layer, name, None)
    return None if parameter is None else parameter.data


def register_methods() -> None:
    """Register the classes with vLLM, once per process; called when a worker starts."""
    from vllm.model_executor import custom_op

    # A module global in new releases, an attribute of the class in older ones.
    registry = getattr(custom_op, "op_registry_oot", None)
    if registry is None:
        registry = custom_op.CustomOp.op_registry_oot
    if UnquantizedFusedMoEMethod.__name__ not in registry:
        UnquantizedFusedMoEMethod.register_oot(NPUUnquantizedFusedMoEMethod, name=UnquantizedFusedMoEMethod.__name__)
