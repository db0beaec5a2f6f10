# SPDX-License-Identifier: Apache-2.0
"""W4A16 experts behind vLLM's compressed-tensors method: int4 weights in groups of inputs or per channel, float rows.

Takes the place of upstream's class, whose constructor looks for a CUDA kernel. Parameters and how they are sliced stay
upstream's; the loader turns a checkpoint's four bits into the operator's (``core/packed_int4.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from types import MethodType
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_wna16 as upstream,
)

from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.packed_int4 import PER_WORD, group_scales, to_signed
from vllm_ascend_patch.seams import checkpoint

from . import modelslim
from .method import NPUExperts, activation_of, check_supported, keep_runtime, runtime_of

# Kept here, because the module's own name for it is this file's class once the patch is applied.
_ORIGINAL: Any = upstream.CompressedTensorsWNA16MoEMethod
_BITS = 4


class _PackedParameters(upstream.CompressedTensorsWNA16MoEMethod):
    """Upstream's parameters, whose loader writes what the operator reads."""

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """w13 int32 ``[E, 2I, H / 8]``, w2 ``[E, H, I / 8]``, and scales ``[E, N, G]`` as views of ``[E, G, N]``."""
        setattr(layer, modelslim.UPSTREAM, kwargs["weight_loader"])
        kwargs["weight_loader"] = MethodType(_load, layer)
        super().create_weights(layer, *args, **kwargs)
        for name in ("w13_weight_scale", "w2_weight_scale"):
            found = getattr(layer, name)
            parameter = torch.nn.Parameter(group_scales(found.data), requires_grad=False)
            parameter.__dict__.update(found.__dict__)  # its loader, and what the loader asks it
            setattr(layer, name, parameter)


class NPUW4A16MoEMethod(NPUExperts, _PackedParameters):
    """Experts in int4; rows and results in the model's dtype."""

    supports_eplb = False  # what load balancing moves has to lie in one piece per expert, as scales do not

    def __init__(self, weight_quant: Any, input_quant: Any, moe: Any, layer_name: str | None = None) -> None:
        super(_ORIGINAL, self).__init__(moe)  # not upstream's own constructor: it selects a CUDA kernel
        if weight_quant.num_bits != _BITS or not weight_quant.symmetric or getattr(moe, "has_bias", False):
            raise ValueError(
                f"experts with {'' if weight_quant.symmetric else 'asymmetric '}int{weight_quant.num_bits} weights"
                f"{' and biases' if getattr(moe, 'has_bias', False) else ''} and float activations are not supported on "
                "Ascend NPUs; supported are symmetric int4 weights without biases"
            )
        self.weight_quant, self.input_quant = weight_quant, input_quant
        self.num_bits, self.symmetric, self.strategy = _BITS, True, weight_quant.strategy
        self.packed_factor = Fraction(32, _BITS)
        self.group_size = weight_quant.group_size or -1

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded; the parameters stay."""
        check_supported(self.moe)
        checkpoint.refuse_unwritten(layer, self)
        keep_runtime(layer, self.quantized)

    def weights_of(self, layer: Any) -> ExpertWeights:
        return ExpertWeights.of_int4(
            layer.w13_weight_packed,
            layer.w2_weight_packed,
            layer.w13_weight_scale,
            layer.w2_weight_scale,
            activation=runtime_of(layer).activation,
        )

    def get_fused_moe_quant_config(self, layer: Any) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: ``weight_shape`` is not read."""
        if name.partition("_")[2] not in ("weight_packed", "weight_scale"):
            return ()
        two = name.startswith("w13") and activation_of(layer).gated
        return (0, parameter.shape[1] // 2) if two else (0,)


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
    if kind.endswith(("weight_packed", "weight_scale")):
        size, hidden = layer.intermediate_size_per_partition * layer.moe_config.tp_size, layer.hidden_size
        outputs, inputs = (hidden, size) if shard_id == "w2" else (size, hidden)
        group, packed = layer.quant_method.group_size, kind.endswith("packed")
        expected = [outputs, inputs // PER_WORD if packed else 1 if group < 0 else inputs // group]
        shape, name = list(loaded_weight.shape), modelslim.tensor_name(layer, kind, shard_id, expert_id)
        if shape != expected:
            raise ValueError(f"{name} of the checkpoint has shape {shape}, where {expected} is expected")
        if packed and loaded_weight.dtype != torch.int32:
            raise ValueError(f"{name} of the checkpoint is {loaded_weight.dtype}, where torch.int32 is expected")
        loaded_weight = to_signed(loaded_weight) if packed else loaded_weight
    return getattr(layer, modelslim.UPSTREAM)(
        param, loaded_weight, weight_name, shard_id, expert_id, return_success=return_success
    )
