# SPDX-License-Identifier: Apache-2.0
"""Where the installed vLLM keeps the MoE class that the seams derive from. Names only, no code."""

try:
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
except ImportError:
    from vllm.model_executor.layers.fused_moe.layer import UnquantizedFusedMoEMethod

__all__ = ["UnquantizedFusedMoEMethod"]
