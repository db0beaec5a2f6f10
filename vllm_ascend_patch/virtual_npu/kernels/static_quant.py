# SPDX-License-Identifier: Apache-2.0
"""``npu_quantize``: int8 with scales that are known beforehand. Scales found per row live in quant_matmul.py."""

from __future__ import annotations

import torch

from .limits import require, require_dim, require_dtype, require_shape, short, unsupported
from .quantise import UNWRITTEN

MAX_DIMS = 8
# c10/core/ScalarType.h: int8 and qint8 are written alike; the others of the operator are not modelled.
_INT8, _QINT8 = 1, 12
_OTHERS = {3: "int32", 13: "quint8", 14: "qint32", 16: "quint4x2"}


def quantize(
    input: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: int,
    axis: int = 1,
    div_mode: bool = True,
) -> torch.Tensor:
    """``round(x / scales + zero_points)`` with ``div_mode``, else ``round(x * scales + zero_points)``, within int8.

    Args:
        input: fp16, bf16 or fp32, 1 to 8 dimensions; may be empty.
        scales: ``[1]`` or one per index of the axis. Of the input's dtype, but float32 or bf16 for a float32 input with
            ``div_mode``.
        zero_points: like scales, or None. With ``div_mode`` int8, uint8 or int32, or bf16 beside bf16.
        dtype: qint8, or int8 without ``div_mode``.
        axis: with ``div_mode`` any; without, -2 is the last but one and everything above the last.

    Returns:
        int8 like the input. Rounding is to even, computed in float32.
    """
    op = "npu_quantize"
    x = input
    require_dtype(op, "input", x, (torch.float16, torch.bfloat16, torch.float32))
    require(op, 1 <= x.dim() <= MAX_DIMS, f"input must have 1 to {MAX_DIMS} dimensions", x.dim())
    if dtype in _OTHERS:
        raise unsupported(op, f"dtype {_OTHERS[dtype]}")
    if div_mode:
        require(op, dtype == _QINT8, f"dtype with div_mode must be qint8 ({_QINT8})", dtype)
        _check_division(op, x, scales, zero_points, axis)
        chosen = axis % x.dim()
    else:
        require(op, dtype in (_INT8, _QINT8), f"dtype must be int8 ({_INT8}) or qint8 ({_QINT8})", dtype)
        _check_product(op, x, scales, zero_points, axis)
        chosen = x.dim() - 2 if axis == -2 else x.dim() - 1
    width = x.shape[chosen]
    require(op, scales.shape[0] in (1, width), f"scales must have 1 or {width} elements", scales.shape[0])
    if zero_points is not None:
        require_shape(op, "zero_points", zero_points, scales.shape)

    shape = [1] * x.dim()
    shape[chosen] = -1
    factor = scales.float().view(shape)
    scaled = x.float() / factor if div_mode else x.float() * factor
    if zero_points is not None:
        scaled = scaled + zero_points.float().view(shape)
    return scaled.round_().clamp_(-128, 127).nan_to_num_(nan=UNWRITTEN).to(torch.int8)


def _check_division(op: str, x: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, axis: int) -> None:
    if x.dtype == torch.float16:
        raise unsupported(
            op, "a float16 input with div_mode, whose scales the vendor's pages want in different dtypes,"
        )
    allowed = (torch.float32, torch.bfloat16) if x.dtype == torch.float32 else (torch.bfloat16,)
    require_dtype(op, f"scales for {short(x.dtype)} input", scales, allowed)
    require_dim(op, "scales", scales, 1)
    require(op, -x.dim() <= axis < x.dim(), f"axis must be one of the input's {x.dim()}", axis)
    if zeros is not None:
        both = x.dtype == scales.dtype == torch.bfloat16
        integers = (torch.int8, torch.uint8, torch.int32)
        require_dtype(op, "zero_points", zeros, (*integers, torch.bfloat16) if both else integers)


def _check_product(op: str, x: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, axis: int) -> None:
    require_dtype(op, f"scales for {short(x.dtype)} input", scales, (x.dtype,))
    if scales.dim() != 1:
        raise unsupported(op, "scales of more than one dimension")
    require(op, -2 <= axis < x.dim(), f"axis must be at least -2 and below {x.dim()}", axis)
    require(op, axis != -2 or x.dim() > 1, "axis -2 needs an input of 2 dimensions", x.dim())
    if zeros is not None:
        require_dtype(op, "zero_points", zeros, (scales.dtype,))
