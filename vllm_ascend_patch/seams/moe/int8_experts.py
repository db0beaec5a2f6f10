# SPDX-License-Identifier: Apache-2.0
"""What int8 experts of compressed-tensors checkpoints have in common, wherever a release keeps upstream's class for them.

Which class that is, and what its constructor is called with, the modules that bind to it know.
"""

from __future__ import annotations

from typing import Any

from vllm_ascend_patch.core.moe.experts import scale_dtypes

from .method import NPUExperts, activation_of, retype


class Int8Experts(NPUExperts):
    """Weights in int8 per channel, activations in int8 per token, results in the model's dtype."""

    quantized = True
    supports_eplb = True

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """Upstream's, with scales of the operators' dtypes: whoever loads them later writes what the operators read."""
        self.moe = layer.moe_config  # in the oldest release nobody else says
        super().create_weights(layer, *args, **kwargs)
        dtypes = scale_dtypes(layer.w2_weight.shape[2], self.moe.in_dtype, activation_of(layer))
        for name, dtype in zip(("w13_weight_scale", "w2_weight_scale"), dtypes, strict=True):
            retype(layer, name, dtype)
