# SPDX-License-Identifier: Apache-2.0
"""As ``w8a8.py``, where upstream has all of its compressed-tensors methods for experts in one module.

Its constructor there looks for no kernel, and refuses every scheme but int8 weights per channel with dynamic activations.
"""

from __future__ import annotations

from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors_moe as upstream

from .int8_experts import Int8Experts


class NPUW8A8Int8MoEMethod(Int8Experts, upstream.CompressedTensorsW8A8Int8MoEMethod):
    """Experts in int8; results in the model's dtype."""
