# SPDX-License-Identifier: Apache-2.0
"""Where the installed vLLM keeps the MoE classes and helpers that the seams derive from. Names only, no code."""

try:
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
except ImportError:
    from vllm.model_executor.layers.fused_moe.layer import UnquantizedFusedMoEMethod
try:
    from vllm.model_executor.utils import replace_parameter
except ImportError:
    from vllm.model_executor.layers.quantization.utils.layer_utils import replace_parameter

__all__ = ["UnquantizedFusedMoEMethod", "replace_parameter"]
