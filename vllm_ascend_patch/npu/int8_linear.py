# SPDX-License-Identifier: Apache-2.0
"""W8A8 linear layers on ``npu_dynamic_quant`` and ``npu_quant_matmul``, as one of vLLM's int8 linear kernels.

Serves compressed-tensors checkpoints with symmetric per-token dynamic activations. Expert layers are not linear layers:
theirs is ``seams/moe/method.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_npu
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearKernel
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import PlatformEnum


class NPUInt8LinearKernel(Int8ScaledMMLinearKernel):
    """``y = (int8(x) @ int8(W)) * scale(x) * scale(W) + bias``."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if c.is_static_input_scheme or not c.input_symmetric:
            return False, "only symmetric, dynamic per-token activations are supported on Ascend NPUs"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Transpose to ``[K, N]`` and spread a per-tensor scale over the channels, once."""
        weight, scale, *_ = self._get_layer_params(layer)
        names = self.layer_param_names
        if not self.config.is_channelwise:
            widths = torch.tensor(layer.logical_widths, device=scale.device)
            scale = scale.data.flatten().repeat_interleave(widths)
        replace_parameter(layer, names[0], torch.nn.Parameter(weight.data.t().contiguous(), requires_grad=False))
        flat = scale.data.flatten().to(torch.float32).contiguous()
        replace_parameter(layer, names[1], torch.nn.Parameter(flat, requires_grad=False))

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]`` in bfloat16 or float16 -> ``[..., N]`` in the same dtype."""
        weight, scale, *_ = self._get_layer_params(layer)
        rows = x.reshape(-1, x.shape[-1])
        quantised, row_scale = torch_npu.npu_dynamic_quant(rows)
        output = torch_npu.npu_quant_matmul(
            quantised, weight, scale, pertoken_scale=row_scale, output_dtype=x.dtype
        ).view(*x.shape[:-1], weight.shape[1])
        return output if bias is None else output + bias


def register() -> None:
    """Offer the kernel to vLLM's selection, once per process."""
    kernels = linear._POSSIBLE_INT8_KERNELS.setdefault(PlatformEnum.OOT, [])
    if NPUInt8LinearKernel not in kernels:
        linear.register_linear_kernel(NPUInt8LinearKernel, PlatformEnum.OOT, "int8")
