# SPDX-License-Identifier: Apache-2.0
"""W4A8 experts behind vLLM's compressed-tensors method: int4 weights per channel, int8 activations per token.

Takes the place of upstream's class, whose kernels are for Arm CPUs. A checkpoint has an integer in each byte; the loader
packs two, as ModelSlim's checkpoints have them, and upstream's loader takes each rank's slices. The operator's bias, for
which these checkpoints have no tensor, is computed from weights and scales: ``core/moe/int4_weights.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import FusedMoeWeightScaleSupported
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w4a8_int8 as upstream,
)

from vllm_ascend_patch.core.int8_scales import as_bits
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.int4_weights import (
    check_int4_activation,
    check_int4_sizes,
    empty_int4,
    int4_weights,
    pack_outputs,
    scale_bias,
)
from vllm_ascend_patch.seams import checkpoint

from . import modelslim
from .method import NPUExperts, activation_of, check_supported, keep_runtime, local_expert

# Kept here, because the module's own name for it is this file's class once the patch is applied.
_ORIGINAL: Any = upstream.CompressedTensorsW4A8Int8MoEMethod
_LOADED = ("weight", "weight_scale")
_BIAS = "scale_bias"


class _Int4Parameters(upstream.CompressedTensorsW4A8Int8MoEMethod):
    """The parameters that are loaded."""

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Upstream's call: w13 ``[E, I, H]`` and w2 ``[E, H / 2, I]``, two outputs in a byte, and the scales' bits."""
        size = intermediate_size_per_partition
        check_int4_sizes(hidden_size, size)
        setattr(layer, modelslim.UPSTREAM, attributes["weight_loader"])
        attributes["weight_loader"] = MethodType(_load, layer)
        channel = attributes | {"quant_method": FusedMoeWeightScaleSupported.CHANNEL.value}
        for name, outputs, inputs in (("w13", 2 * size, hidden_size), ("w2", hidden_size, size)):
            modelslim.add(layer, f"{name}_weight", empty_int4(num_experts, outputs, inputs), attributes)
            scale = torch.empty(num_experts, outputs, 1, dtype=torch.int64)
            modelslim.add(layer, f"{name}_weight_scale", scale, channel)


class NPUW4A8Int8MoEMethod(NPUExperts, _Int4Parameters):
    """Experts in int4; results in the model's dtype."""

    quantized = True
    supports_eplb = False  # what load balancing moves has to lie in one piece per expert, as transposed weights do not

    def __init__(self, weight_quant: Any, input_quant: Any, moe: Any, layer_name: str | None = None) -> None:
        super(_ORIGINAL, self).__init__(moe)  # not upstream's own constructor: it selects a CPU kernel
        self.weight_quant, self.input_quant = weight_quant, input_quant
        per_channel = str(weight_quant.strategy) in ("channel", "QuantizationStrategy.CHANNEL")
        if not per_channel or not input_quant.symmetric or getattr(moe, "has_bias", False):
            raise ValueError(
                f"int4 experts with weights quantised per {weight_quant.strategy}, "
                f"{'' if input_quant.symmetric else 'a'}symmetric activations"
                f"{' and biases' if getattr(moe, 'has_bias', False) else ''} are not supported on Ascend NPUs; supported "
                "are weights per channel with symmetric activations, without biases"
            )

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded; the parameters stay, and the bias is computed."""
        check_supported(self.moe)
        check_int4_activation(activation_of(layer))
        checkpoint.refuse_unwritten(layer, self)
        for part in ("w13", "w2"):
            weight, scale = (getattr(layer, f"{part}_{name}").data for name in _LOADED)
            each = [scale_bias(weight[expert], scale[expert]) for expert in range(weight.shape[0])]
            layer.register_parameter(f"{part}_{_BIAS}", torch.nn.Parameter(torch.stack(each), requires_grad=False))
        keep_runtime(layer, self.quantized)

    def weights_of(self, layer: Any) -> ExpertWeights:
        parameters = (getattr(layer, f"{part}_{name}") for name in (*_LOADED, _BIAS) for part in ("w13", "w2"))
        return int4_weights(*parameters, output_dtype=self.moe.in_dtype)

    def get_fused_moe_quant_config(self, layer: Any) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: the bias is in no checkpoint."""
        if name.partition("_")[2] not in _LOADED:
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
    expert = local_expert(layer, expert_id)
    if expert < 0:
        return False if return_success else None  # not packed in vain
    part, _, kind = weight_name.rpartition(".")[2].partition("_")
    size, hidden = layer.intermediate_size_per_partition * layer.moe_config.tp_size, layer.hidden_size
    outputs, inputs = (hidden, size) if shard_id == "w2" else (size, hidden)
    expected = [outputs, inputs if kind == "weight" else 1]
    shape, name = list(loaded_weight.shape), modelslim.tensor_name(layer, f"{part}_{kind}", shard_id, expert_id)
    if shape != expected:
        raise ValueError(f"{name} of the checkpoint has shape {shape}, where {expected} is expected")
    if kind == "weight":
        if loaded_weight.dtype != torch.int8 or int(loaded_weight.min()) < -8 or int(loaded_weight.max()) > 7:
            raise ValueError(f"{name} of the checkpoint is {loaded_weight.dtype}, where int8 from -8 to 7 is expected")
        loaded_weight = pack_outputs(loaded_weight)
    else:
        loaded_weight = as_bits(loaded_weight)
    done = getattr(layer, modelslim.UPSTREAM)(
        param, loaded_weight, weight_name, shard_id, expert_id, return_success=return_success
    )
    _follow(layer, part, expert)
    return done


def _follow(layer: Any, part: str, expert: int) -> None:
    """The bias of what was pushed into the running model; before weights are processed there is none."""
    bias = getattr(layer, f"{part}_{_BIAS}", None)
    if bias is not None:
        weight, scale = (getattr(layer, f"{part}_{name}").data for name in _LOADED)
        bias.data[expert].copy_(scale_bias(weight[expert], scale[expert]))
