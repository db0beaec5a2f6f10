# SPDX-License-Identifier: Apache-2.0
"""gpt-oss' experts as they are published, in mxfp4: turned into the model's dtype once they are loaded, since the operators
of A2 and A3 take no such weights. From then on they are experts like others.

Parameters and how they are sliced are upstream's; its kernels, and what it does to parameters for them, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.quantization import mxfp4 as upstream

from vllm_ascend_patch.core.mxfp4 import dequantised

from .method import NPUExperts


class NPUMxfp4Config(upstream.GptOssMxfp4Config):
    """Upstream's configuration, with this port's experts."""

    def _make_moe_method(self, moe: Any) -> NPUMxfp4MoEMethod:
        return NPUMxfp4MoEMethod(moe)


class NPUMxfp4MoEMethod(NPUExperts, upstream.GptOssMxfp4MoEMethod):
    """Loads four bits a weight, serves the model's dtype."""

    supports_eplb = False  # what load balancing moves is not what the loader wrote
    skip_forward_padding = False
    has_unpadded_output = False

    def __init__(self, moe: Any) -> None:
        # Not upstream's own constructor: it selects a CUDA kernel.
        super(upstream.GptOssMxfp4MoEMethod, self).__init__(moe)
        self.weight_dtype = upstream.GptOssMxfp4Config.get_name()

    def maybe_roundup_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return super(upstream.GptOssMxfp4MoEMethod, self).maybe_roundup_sizes(*args, **kwargs)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Put ``[E, N, K]`` in the model's dtype in place of bits and scales."""
        for name in ("w13_weight", "w2_weight"):
            packed, scales = getattr(layer, name), getattr(layer, f"{name}_scale")
            weight = dequantised(packed.data, scales.data, self.moe.in_dtype)
            delattr(layer, f"{name}_scale")
            setattr(layer, name, torch.nn.Parameter(weight, requires_grad=False))
        super().process_weights_after_loading(layer)

    def get_fused_moe_quant_config(self, layer: Any) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: nothing, since a parameter is one tensor, and vLLM itself misses a parameter."""
        return ()
