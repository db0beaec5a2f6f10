# SPDX-License-Identifier: Apache-2.0
"""W4A16 linear layers on torch_npu's weight-quantised matmul, as one of vLLM's mixed-precision linear kernels.

Serves compressed-tensors checkpoints with symmetric int4 weights, in groups of inputs or per channel. Their parameters hold
what the operator reads from the start: ``seams/port/packed_weights.py``. Experts are ``seams/moe/w4a16.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch_npu
from vllm.model_executor.kernels import linear
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from vllm_ascend_patch.core.operator_limits import WEIGHT_QUANT_GROUP_MULTIPLE, WEIGHT_QUANT_MAX_DIM
from vllm_ascend_patch.seams import checkpoint

from .int8_linear import first_rows, loaded_parts, tensor_name


class NPUInt4LinearKernel(linear.MPLinearKernel):
    """``y = x @ (W * scale).T + bias``."""

    @classmethod
    def get_min_capability(cls) -> int:
        return 0  # CUDA's measure

    @classmethod
    def can_implement(cls, c: linear.MPLinearLayerConfig) -> tuple[bool, str | None]:
        if c.weight_type == scalar_types.int4:
            return False, (
                "of int4 weights beside int8 activations (W4A8) experts alone are supported on Ascend NPUs by this port: "
                "leave linear layers out of their group of compressed-tensors, or take W8A8 for them"
            )
        if c.weight_type != scalar_types.uint4b8 or c.zero_points:
            return False, "only symmetric int4 weights are supported on Ascend NPUs by this port"
        inputs, outputs = c.partition_weight_shape
        if max(inputs, outputs) > WEIGHT_QUANT_MAX_DIM:
            return False, (
                f"the layer has {max(inputs, outputs)} inputs or outputs per rank, at most {WEIGHT_QUANT_MAX_DIM} are "
                "supported on Ascend NPUs (npu_weight_quant_batchmatmul): raise --tensor-parallel-size"
            )
        # One group of all inputs is per channel.
        if c.group_size not in (-1, inputs) and c.group_size % WEIGHT_QUANT_GROUP_MULTIPLE:
            return False, f"groups of {c.group_size} inputs are no multiple of {WEIGHT_QUANT_GROUP_MULTIPLE}"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """The parameters stay."""
        checkpoint.refuse_unwritten(layer, self)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]`` in bfloat16 or float16 -> ``[..., N]`` in the same dtype."""
        words, scale, _ = self._get_weight_params(layer)  # [N, K / 8]; [N, G]
        output = torch_npu.npu_weight_quant_batchmatmul(
            x.reshape(-1, x.shape[-1]),
            words.t(),
            scale.t(),
            antiquant_group_size=self.config.group_size if scale.shape[1] > 1 else 0,
        ).view(*x.shape[:-1], words.shape[0])
        return output if bias is None else output + bias

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: what is merged, as query, key and value are, lies above each other."""
        return first_rows(layer.output_partition_sizes) if name in (self.w_q_name, self.w_s_name) else ()

    def loaded(self, layer: Any, arguments: dict[str, Any], parts: int) -> list[tuple[int, int]]:
        """As ``checkpoint.Owner`` has it."""
        return loaded_parts(arguments, parts)

    def tensor_name(self, layer: Any, name: str, expert: int, part: int) -> str:
        """As ``checkpoint.Owner`` has it."""
        return tensor_name(layer, name, part, len(layer.output_partition_sizes))


def register() -> None:
    """Offer the kernel to vLLM's selection, once per process."""
    kernels = linear._POSSIBLE_KERNELS.setdefault(PlatformEnum.OOT, [])
    if NPUInt4LinearKernel not in kernels:
        linear.register_linear_kernel(NPUInt4LinearKernel, PlatformEnum.OOT, "mp")
