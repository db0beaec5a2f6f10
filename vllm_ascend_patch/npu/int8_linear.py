# SPDX-License-Identifier: Apache-2.0
"""W8A8 linear layers on torch_npu's quantised matmul, as one of vLLM's int8 linear kernels.

Serves compressed-tensors checkpoints with symmetric activations, dynamic per token or static per tensor. Expert layers are
not linear layers: theirs is ``seams/moe/method.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch_npu

from vllm_ascend_patch.core.operator_limits import QUANT_MATMUL_MAX_DIM
from vllm_ascend_patch.seams import checkpoint

from . import int8_kernels

_SCALE_OF_CHANNEL = "_ascend_scale_of_channel"


class NPUInt8LinearKernel(int8_kernels.Int8LinearKernel):
    """``y = (int8(x) @ int8(W)) * scale(x) * scale(W) + bias``."""

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if not c.input_symmetric:
            return False, "only symmetric activations are supported on Ascend NPUs by this port"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """The parameters stay as the checkpoint has them, so that loading them again is enough. A scale per tensor gets an
        index of the channels that it belongs to.
        """
        checkpoint.refuse_unwritten(layer, self)
        check_width(getattr(layer, "prefix", "") or type(layer).__name__, self.layer_params(layer)[0])
        if not self.config.is_channelwise and not hasattr(layer, _SCALE_OF_CHANNEL):
            widths = torch.tensor(layer.logical_widths)
            index = torch.arange(len(widths)).repeat_interleave(widths)
            layer.register_buffer(_SCALE_OF_CHANNEL, index.to(self.layer_params(layer)[0].device), persistent=False)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]`` in bfloat16 or float16 -> ``[..., N]`` in the same dtype."""
        weight, scale, input_scale = self.layer_params(layer)
        scale = scale.flatten() if self.config.is_channelwise else scale[getattr(layer, _SCALE_OF_CHANNEL)]
        if input_scale is None:
            return dynamic_product(x, weight, scale, bias)
        # Multiplied here and not once, so that a scale that is loaded again counts.
        output = static_product(x, weight, scale * input_scale, input_scale)
        return output if bias is None else output + bias

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it: what is merged, as query, key and value are, lies above each other."""
        if name == self.layer_param_names[2]:
            return (0,)
        if name not in self.layer_param_names[:2]:
            return ()
        return first_rows([1] * len(layer.logical_widths) if parameter.dim() == 1 else layer.logical_widths)

    def loaded(self, layer: Any, arguments: dict[str, Any], parts: int) -> list[tuple[int, int]]:
        """As ``checkpoint.Owner`` has it."""
        return loaded_parts(arguments, parts)

    def tensor_name(self, layer: Any, name: str, expert: int, part: int) -> str:
        """As ``checkpoint.Owner`` has it."""
        return tensor_name(layer, name, part, len(layer.logical_widths))


def dynamic_product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x @ weight.T`` with ``x`` quantised per token.

    Args:
        x: ``[..., K]`` in bfloat16 or float16.
        weight: int8 ``[N, K]``.
        scale: ``[N]``, of the weight.
        bias: ``[N]``, added to the product.

    Returns:
        ``[..., N]`` in the dtype of ``x``.
    """
    quantised, row_scale = torch_npu.npu_dynamic_quant(x.reshape(-1, x.shape[-1]))
    output = torch_npu.npu_quant_matmul(
        quantised, weight.t(), scale, pertoken_scale=row_scale, output_dtype=x.dtype
    ).view(*x.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


def static_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    input_scale: torch.Tensor,
    input_offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(round(x / input_scale + input_offset) @ weight.T + bias) * scale``, the rounded values kept within int8.

    Args:
        x: ``[..., K]`` in bfloat16 or float16.
        weight: int8 ``[N, K]``.
        scale: ``[N]``, of the product: float32, or for float16 results its bits as int64.
        input_scale: float32 ``[1]``.
        input_offset: int32 ``[1]``.
        bias: int32 ``[N]``.

    Returns:
        ``[..., N]`` in the dtype of ``x``.
    """
    # In float32, since a scale that is rounded to bfloat16 moves values by up to a step.
    rows = x.reshape(-1, x.shape[-1]).float()
    quantised = torch_npu.npu_quantize(rows, input_scale, input_offset, torch.qint8, -1, True)
    product = torch_npu.npu_quant_matmul(quantised, weight.t(), scale, bias=bias, output_dtype=x.dtype)
    return product.view(*x.shape[:-1], weight.shape[0])


def check_width(name: str, weight: torch.Tensor) -> None:
    """Raise ``ValueError`` for an int8 weight ``[N, K]`` that the operator does not take."""
    widest = max(weight.shape)
    if widest > QUANT_MATMUL_MAX_DIM:
        raise ValueError(
            f"{name}: an int8 linear layer has {widest} inputs or outputs per rank, at most {QUANT_MATMUL_MAX_DIM} are "
            "supported on Ascend NPUs (npu_quant_matmul): raise --tensor-parallel-size"
        )


def first_rows(widths: Sequence[int]) -> list[int]:
    """The row that each part begins at, where what is merged, as query, key and value are, lies above each other."""
    return [0, *itertools.accumulate(widths[:-1])]


def loaded_parts(arguments: dict[str, Any], parts: int) -> list[tuple[int, int]]:
    """``checkpoint.Owner.loaded`` of a linear layer, by the ``loaded_shard_id`` of upstream's loaders."""
    shard = arguments.get("loaded_shard_id")
    if shard is None:
        return [(0, part) for part in range(parts)]
    if isinstance(shard, tuple):
        return [(0, part) for part in shard]
    return [(0, {"q": 0, "k": 1, "v": 2}.get(shard, shard))]


def tensor_name(layer: Any, name: str, part: int, parts: int) -> str:
    """``checkpoint.Owner.tensor_name`` of a linear layer that ``parts`` of a checkpoint's are merged in."""
    prefix = getattr(layer, "prefix", "") or type(layer).__name__
    path, _, last = prefix.rpartition(".")
    config = getattr(layer.quant_method, "quantization_config", None)
    merged = getattr(config, "packed_modules_mapping", {}).get(last, ())
    if len(merged) == parts:
        return f"{path}.{merged[part]}.{name}"
    return f"{prefix}.{name}" + (f" (part {part})" if parts > 1 else "")


def register() -> None:
    """Offer the kernel to vLLM's selection, once per process."""
    int8_kernels.register(NPUInt8LinearKernel)
