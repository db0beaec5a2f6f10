# SPDX-License-Identifier: Apache-2.0
"""Experts of ModelSlim checkpoints behind vLLM's MoE method classes: int8 weights per channel, int8 activations per token.

The tensors are those of ``w8a8.py``'s experts under ModelSlim's names; parameters and their loader are made here, since
upstream has no class for the format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from vllm.model_executor.layers import fused_moe
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, FusedMoeWeightScaleSupported
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.utils import set_weight_attrs

from vllm_ascend_patch.core.moe.experts import scale_dtypes

from .expert_slots import slots_of
from .method import NPUExperts, activation_of, local_expert

UPSTREAM = "_ascend_expert_loader"
"""Where a layer keeps upstream's loader."""
_SHAPES = {
    "w13_weight": lambda rows, columns: [rows, columns],
    "w2_weight": lambda rows, columns: [columns, rows],
    "w13_weight_scale": lambda rows, columns: [rows, 1],
    "w2_weight_scale": lambda rows, columns: [columns, 1],
}
_STATIC = ("input_scale", "input_offset", "deq_scale", "quant_bias")


def is_experts(layer: Any) -> bool:
    """Whether vLLM asks for the method of routed experts."""
    return isinstance(layer, getattr(fused_moe, "RoutedExperts", None) or fused_moe.FusedMoE)


class _Int8Parameters(FusedMoEMethodBase):
    """The parameters of int8 experts."""

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Upstream's call: w13 ``[E, 2I, H]``, w2 ``[E, H, I]``, and their scales in the operators' dtypes."""
        size = intermediate_size_per_partition
        activation = activation_of(layer)
        dtypes = scale_dtypes(size, params_dtype, activation)
        setattr(layer, UPSTREAM, attributes["weight_loader"])
        attributes["weight_loader"] = MethodType(_load, layer)
        channel = {"quant_method": FusedMoeWeightScaleSupported.CHANNEL.value}
        for name, rows, columns, dtype in (
            ("w13", activation.width * size, hidden_size, dtypes[0]),
            ("w2", hidden_size, size, dtypes[1]),
        ):
            add(layer, f"{name}_weight", torch.empty(num_experts, rows, columns, dtype=torch.int8), attributes)
            scale = torch.empty(num_experts, rows, 1, dtype=dtype)
            add(layer, f"{name}_weight_scale", scale, attributes | channel)
            add_offsets(layer, f"{name}_weight_offset", num_experts)

    def get_fused_moe_quant_config(self, layer: Any) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()


class NPUModelSlimMoEMethod(NPUExperts, _Int8Parameters):
    """Experts in int8; results in the model's dtype."""

    quantized = True
    supports_eplb = True

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: offsets are looked at and not kept."""
        return () if name.endswith("_offset") else super().first_rows(layer, name, parameter)


class NPUModelSlimMixedMoEMethod(NPUModelSlimMoEMethod):
    """Experts in W8A8_MIX, whose static scales are not used: ``npu/modelslim/linear.py`` says why."""

    def create_weights(self, layer: Any, num_experts: int, *args: Any, **attributes: Any) -> None:
        super().create_weights(layer, num_experts, *args, **attributes)
        for name in (f"{weight}_{suffix}" for weight in ("w13", "w2") for suffix in _STATIC):
            _add_unused(layer, name, num_experts, _leave)

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it."""
        return () if name.endswith(_STATIC) else super().first_rows(layer, name, parameter)


def add_offsets(layer: Any, name: str, experts: int) -> None:
    """A zero for each offset that was looked at."""
    _add_unused(layer, name, experts, _look_at)


def _add_unused(layer: Any, name: str, experts: int, loader: Callable[..., bool | None]) -> None:
    """A parameter for tensors that are not kept: what upstream moves and counts has an element per tensor."""
    data = torch.zeros(experts, 2 if name.startswith("w13") else 1, dtype=torch.int8)
    add(layer, name, data, {"weight_loader": MethodType(loader, layer)})


def add(layer: Any, name: str, data: torch.Tensor, attributes: dict[str, Any]) -> None:
    """A parameter of the layer, with what its loader asks it."""
    parameter = torch.nn.Parameter(data, requires_grad=False)
    set_weight_attrs(parameter, attributes)
    layer.register_parameter(name, parameter)


def _load(
    layer: Any,
    param: torch.nn.Parameter,
    loaded_weight: torch.Tensor,
    weight_name: str,
    shard_id: str,
    expert_id: int,
    return_success: bool = False,
) -> bool | None:
    """As upstream's ``weight_loader``, whose parameters these are. ``ValueError`` for what does not fit, by its name."""
    kind = weight_name.rpartition(".")[2]
    size = layer.intermediate_size_per_partition * layer.moe_config.tp_size
    expected, shape = _SHAPES[kind](size, layer.hidden_size), list(loaded_weight.shape)
    name = tensor_name(layer, kind, shard_id, expert_id)
    if shape != expected:
        raise ValueError(f"{name} of the checkpoint has shape {shape}, where {expected} is expected")
    if param.dtype == torch.int8 and loaded_weight.dtype != torch.int8:
        raise ValueError(f"{name} of the checkpoint is {loaded_weight.dtype}, where its description promises int8")
    return getattr(layer, UPSTREAM)(
        param, loaded_weight, weight_name, shard_id, expert_id, return_success=return_success
    )


def _look_at(
    layer: Any,
    param: torch.nn.Parameter,
    loaded_weight: torch.Tensor,
    weight_name: str,
    shard_id: str,
    expert_id: int,
    return_success: bool = False,
) -> bool | None:
    """A weight offset has to be zero: the operators take symmetric weights only."""
    if bool(loaded_weight.any()):
        name = tensor_name(layer, weight_name.rpartition(".")[2], shard_id, expert_id)
        raise ValueError(
            f"{name} is not zero: weights that are quantised asymmetrically are not supported on Ascend NPUs by this port. "
            "Export with symmetric weights (msModelSlim: weight symmetric: true)"
        )
    local = [one for slot in slots_of(layer, expert_id) if (one := local_expert(layer, slot)) >= 0]
    for one in local:
        param.data[one, 1 if shard_id == "w3" else 0].copy_(loaded_weight.flatten()[0])
    return bool(local) if return_success else None


def _leave(
    layer: Any,
    param: torch.nn.Parameter,
    loaded_weight: torch.Tensor,
    weight_name: str,
    shard_id: str,
    expert_id: int,
    return_success: bool = False,
) -> bool | None:
    """A tensor that nothing reads is loaded where its expert is, and not kept."""
    local = any(local_expert(layer, slot) >= 0 for slot in slots_of(layer, expert_id))
    return local if return_success else None


def tensor_name(layer: Any, kind: str, shard_id: str, expert: int) -> str:
    """How the checkpoint calls the tensor."""
    projection = {"w1": "gate", "w2": "down", "w3": "up"}[shard_id]
    projection = getattr(layer, f"ckpt_{projection}_proj_name", f"{projection}_proj")
    return f"{layer.layer_name}.{expert}.{projection}.{kind.partition('_')[2]}"
