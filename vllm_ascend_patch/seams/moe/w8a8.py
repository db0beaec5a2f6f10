# SPDX-License-Identifier: Apache-2.0
"""W8A8 dynamic experts behind vLLM's compressed-tensors method: int8 weights per channel, int8 activations per token.

Takes the place of upstream's class, whose constructor looks for a CUDA kernel. How weights are loaded stays upstream's.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w8a8_int8 as upstream,
)

from .int8_experts import Int8Experts

# Kept here, because the module's own name for it is this file's class once the patch is applied.
_ORIGINAL: Any = upstream.CompressedTensorsW8A8Int8MoEMethod


class NPUW8A8Int8MoEMethod(Int8Experts, upstream.CompressedTensorsW8A8Int8MoEMethod):
    """Experts in int8; results in the model's dtype."""

    def __init__(self, weight_quant: Any, input_quant: Any, moe: Any, layer_name: str | None = None) -> None:
        super(_ORIGINAL, self).__init__(moe)  # not upstream's own constructor: it selects a CUDA kernel
        self.weight_quant = weight_quant
        self.input_quant = input_quant
        self.static_input_scales = False
        if str(weight_quant.strategy) not in ("channel", "QuantizationStrategy.CHANNEL") or not input_quant.dynamic:
            raise ValueError(
                f"int8 experts with weights quantised per {weight_quant.strategy} and "
                f"{'dynamic' if input_quant.dynamic else 'static'} activations are not supported on Ascend NPUs; supported "
                "are weights per channel with dynamic activations per token"
            )

    def get_fused_moe_quant_config(self, layer: Any) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()
