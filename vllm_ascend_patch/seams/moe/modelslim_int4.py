# SPDX-License-Identifier: Apache-2.0
"""W4A8 experts of ModelSlim checkpoints behind vLLM's MoE method classes: int4 weights per channel, int8 rows per token.

Parameters and their loader; upstream's loader takes each rank's slices. int8 experts are ``modelslim.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, FusedMoeWeightScaleSupported
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig

from vllm_ascend_patch.core.int8_scales import as_bits
from vllm_ascend_patch.core.modelslim_files import SCALE_BIAS_PARTS
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.int4_weights import (
    check_int4_activation,
    check_int4_sizes,
    empty_int4,
    int4_weights,
    scale_bias_of_rank,
)
from vllm_ascend_patch.seams import checkpoint

from . import modelslim
from .method import NPUExperts, activation_of, check_supported, keep_runtime

_PARAMETERS = ("weight", "weight_scale", "scale_bias")


class _Int4Parameters(FusedMoEMethodBase):
    """The parameters of int4 experts."""

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Upstream's call: the bytes of w13 ``[E, I, H]`` and w2 ``[E, H / 2, I]``, and per output the scale's bits and the
        bias that makes up for the operator's shifted rows.
        """
        size = intermediate_size_per_partition
        check_int4_sizes(hidden_size, size)
        setattr(layer, modelslim.UPSTREAM, attributes["weight_loader"])
        attributes["weight_loader"] = MethodType(_load, layer)
        channel = attributes | {"quant_method": FusedMoeWeightScaleSupported.CHANNEL.value}
        for name, outputs, inputs in (("w13", 2 * size, hidden_size), ("w2", hidden_size, size)):
            modelslim.add(layer, f"{name}_weight", empty_int4(num_experts, outputs, inputs), attributes)
            scale, bias = (torch.empty(num_experts, outputs, 1, dtype=dtype) for dtype in (torch.int64, torch.float32))
            modelslim.add(layer, f"{name}_weight_scale", scale, channel)
            modelslim.add(layer, f"{name}_scale_bias", bias, channel)
            modelslim.add_offsets(layer, f"{name}_weight_offset", num_experts)

    def get_fused_moe_quant_config(self, layer: Any) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()


class NPUModelSlimInt4MoEMethod(NPUExperts, _Int4Parameters):
    """Experts in int4; results in the model's dtype."""

    quantized = True

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded; the parameters stay."""
        check_supported(self.moe)
        check_int4_activation(activation_of(layer))
        checkpoint.refuse_unwritten(layer, self)
        keep_runtime(layer, self.quantized)

    def weights_of(self, layer: Any) -> ExpertWeights:
        parameters = (getattr(layer, f"{part}_{name}") for name in _PARAMETERS for part in ("w13", "w2"))
        return int4_weights(*parameters, output_dtype=self.moe.in_dtype)

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: offsets are looked at and not kept."""
        if name.partition("_")[2] not in _PARAMETERS:
            return ()
        return (0, parameter.shape[1] // 2) if name.startswith("w13") else (0,)


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
    part, _, kind = weight_name.rpartition(".")[2].partition("_")
    ranks = layer.moe_config.tp_size
    size, hidden, down = layer.intermediate_size_per_partition * ranks, layer.hidden_size, shard_id == "w2"
    outputs, inputs = (hidden, size) if down else (size, hidden)
    columns = SCALE_BIAS_PARTS if down and kind == "scale_bias" else 1
    expected = [outputs // 2, inputs] if kind == "weight" else [outputs, columns]
    shape, name = list(loaded_weight.shape), modelslim.tensor_name(layer, f"{part}_{kind}", shard_id, expert_id)
    if shape != expected:
        raise ValueError(f"{name} of the checkpoint has shape {shape}, where {expected} is expected")
    if (loaded_weight.dtype == torch.int8) != (kind == "weight"):
        raise ValueError(
            f"{name} of the checkpoint is {loaded_weight.dtype}, where its description promises W4A8_DYNAMIC"
        )
    if kind == "weight_scale":
        loaded_weight = as_bits(loaded_weight)
    elif columns > 1:
        loaded_weight = scale_bias_of_rank(name, loaded_weight, ranks, layer.moe_config.tp_rank)
    # To upstream every name with "bias" in it is a bias, which it slices by another rule.
    return getattr(layer, modelslim.UPSTREAM)(
        param,
        loaded_weight,
        weight_name.replace("scale_bias", "weight_scale"),
        shard_id,
        expert_id,
        return_success=return_success,
    )
