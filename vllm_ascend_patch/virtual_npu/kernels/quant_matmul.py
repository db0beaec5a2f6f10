# SPDX-License-Identifier: Apache-2.0
"""``npu_dynamic_quant`` and ``npu_quant_matmul``: dense W8A8. Grouped products live in grouped_matmul.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grouped_matmul import integer_product
from .limits import (
    ABSENT,
    require,
    require_absent,
    require_dim,
    require_dtype,
    require_shape,
    scalar_type,
    short,
    unsupported,
)
from .quantise import group_of_rows, quantise_rows

MAX_INNER = 65535
_MARK = 1 << (46 - 32)
"""Bit 46, as CANN's page of TransQuantParamV2 has it, in the upper half of an int64 scale."""
_KEPT_BITS = -(1 << 13)
"""Sign, exponent and ten bits of mantissa: the page's 0xFFFFE000."""


def dynamic_quant(
    input: torch.Tensor,
    *,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dst_type: int | torch.dtype | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 rows and their scales; multiply with the scale to dequantise.

    Args:
        input: ``[..., H]`` fp16 or bf16, at least 2-D.
        smooth_scales: ``[H]``, or with ``group_index`` ``[n, H]``; dtype of the input.
        group_index: int32 ``[n]``, prefix sums that end with the number of rows.

    Returns:
        int8 like the input; float32 ``input.shape[:-1]``.
    """
    op = "npu_dynamic_quant"
    x = input
    require_dtype(op, "x", x, (torch.float16, torch.bfloat16))
    require(op, x.dim() >= 2, "x must have at least 2 dimensions", list(x.shape))
    if scalar_type(op, dst_type) not in (None, torch.int8):
        raise unsupported(op, f"dst_type {dst_type}")
    if quant_mode != "pertoken" or dst_type_max:
        raise unsupported(op, f"quant_mode {quant_mode!r} with dst_type_max {dst_type_max}")
    smooth = smooth_scales
    hidden, rows = x.shape[-1], x.shape[:-1].numel()
    if group_index is None:
        if smooth is not None:
            require_shape(op, "smooth_scales", smooth, (hidden,))
    else:
        if smooth is None:
            raise RuntimeError(f"{op}: group_index needs smooth_scales, got None")
        require_dtype(op, "group_index", group_index, (torch.int32,))
        require_dim(op, "group_index", group_index, 1)
        require_shape(op, "smooth_scales with group_index", smooth, (group_index.shape[0], hidden))
        ends = group_index.tolist()
        rising = all(before <= after for before, after in zip((0, *ends), ends, strict=False))
        require(op, rising and ends[-1:] == [rows], f"group_index must be prefix sums that end with {rows} rows", ends)
    if smooth is not None:
        require(op, smooth.dtype == x.dtype, f"smooth_scales must have the dtype of x ({short(x.dtype)})", smooth.dtype)
        if group_index is not None:
            smooth = smooth[group_of_rows(group_index, rows)].view(x.shape)
    return quantise_rows(x, smooth)


# What A2 and A3 take, per output dtype: scale, bias without and with pertoken_scale (None: no such combination).
_SCALES = {
    torch.int8: (torch.float32, torch.int64),
    torch.float16: (torch.float32, torch.int64),
    torch.bfloat16: (torch.float32, torch.bfloat16),
    torch.int32: (torch.float32, torch.bfloat16),
}
_BIASES: dict[torch.dtype, tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...] | None]] = {
    torch.int8: ((torch.int32,), None),
    torch.float16: ((torch.int32,), (torch.int32, torch.float16, torch.float32)),
    torch.bfloat16: (
        (torch.int32, torch.bfloat16, torch.float32),
        (torch.int32, torch.bfloat16, torch.float32),
    ),
    torch.int32: ((torch.int32,), None),
}


def quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: int | torch.dtype | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: object = ABSENT,
    **dtypes: int | None,
) -> torch.Tensor:
    """``(x1 @ x2 + bias) * scale * pertoken_scale`` for int8 operands.

    Args:
        x1: int8 ``[..., M, K]``.
        x2: int8 ``[..., K, N]``; batch dimensions broadcast, 2 to 6 dimensions.
        scale: ``[1]`` or ``[N]``. int64 for fp16 output without ``pertoken_scale``: the bits of a float32, of which the
            device keeps the upper 19.
        pertoken_scale: float32 ``[M]``; bf16 and fp16 output only.
        bias: ``[N]`` (1-D), added before scaling if int32, after it otherwise.
        output_dtype: None is int8 (with ``offset`` added after scaling), or fp16, bf16, int32 (unscaled).
    """
    op = "npu_quant_matmul"
    require_absent(op, group_sizes=list(group_sizes) if group_sizes else None, **dtypes)
    if y_scale is not ABSENT and y_scale is not None:
        raise unsupported(op, "argument y_scale")
    if x1.dtype == torch.int32 or x2.dtype == torch.int32:
        raise unsupported(op, "int4 operands (packed as int32)")
    require_dtype(op, "x1", x1, (torch.int8,))
    require_dtype(op, "x2", x2, (torch.int8,))
    for name, tensor in (("x1", x1), ("x2", x2)):
        require(op, 2 <= tensor.dim() <= 6, f"{name} must have 2 to 6 dimensions", tensor.dim())
        require(op, tensor.numel() > 0, f"{name} must not be empty", list(tensor.shape))
        last = tensor.shape[-1]
        require(op, last <= MAX_INNER, f"the last dimension of {name} must be at most {MAX_INNER}", last)
    rows, inner, width = x1.shape[-2], x1.shape[-1], x2.shape[-1]
    require(op, x2.shape[-2] == inner, f"x2 must have K = {inner} rows", x2.shape[-2])
    dtype = scalar_type(op, output_dtype) or torch.int8
    require(op, dtype in _SCALES, "output_dtype must be int8, float16, bfloat16 or int32", short(dtype))
    require_dtype(op, f"scale for {short(dtype)} output", scale, _SCALES[dtype])
    if scale.dtype == torch.int64:
        _check_scale_bits(op, scale, dtype, pertoken_scale)
    require_dim(op, "scale", scale, 1)
    require(op, scale.shape[0] in (1, width), f"scale must have 1 or N = {width} elements", scale.shape[0])
    biases = _BIASES[dtype][pertoken_scale is not None]
    if biases is None:
        raise RuntimeError(f"{op}: {short(dtype)} output takes no pertoken_scale, got one")
    if pertoken_scale is not None:
        require_dtype(op, "pertoken_scale", pertoken_scale, (torch.float32,))
        require_shape(op, "pertoken_scale", pertoken_scale, (rows,))
    if bias is not None:
        require_dtype(op, f"bias for {short(dtype)} output", bias, biases)
        if bias.dim() != 1:
            raise unsupported(op, "a bias of more than one dimension")
        require_shape(op, "bias", bias, (width,))
    if offset is not None:
        require(op, dtype == torch.int8, "offset needs int8 output", short(dtype))
        require_dtype(op, "offset", offset, (torch.float32,))
        require_dim(op, "offset", offset, 1)
        require(op, offset.shape[0] in (1, width), f"offset must have 1 or N = {width} elements", offset.shape[0])

    total = integer_product(x1, x2)
    if bias is not None and bias.dtype == torch.int32:
        total = total + bias.double()
    if dtype == torch.int32:
        return total.to(torch.int32)
    total = total * (_of_bits(scale) if scale.dtype == torch.int64 else scale).double()
    if pertoken_scale is not None:
        total = total * pertoken_scale.double().unsqueeze(1)
    if bias is not None and bias.dtype != torch.int32:
        total = total + bias.double()
    if dtype == torch.int8:
        total = total if offset is None else total + offset.double()
        return total.round().clamp(-128, 127).to(torch.int8)
    return total.to(dtype)


def _check_scale_bits(op: str, scale: torch.Tensor, output: torch.dtype, pertoken_scale: torch.Tensor | None) -> None:
    """An int64 scale has the bits of a float32 in its lower half; ``npu_trans_quant_param`` sets ``_MARK`` besides."""
    if output == torch.int8:
        raise unsupported(op, "int64 scale with int8 output")
    require(op, pertoken_scale is None, "scale must be float32 with pertoken_scale", "int64")
    high = (scale >> 32) & ~_MARK
    require(op, not bool(high.any()), "an int64 scale must have the bits of a float32", [hex(int(v)) for v in high[:4]])


def _of_bits(scale: torch.Tensor) -> torch.Tensor:
    return (scale.to(torch.int32) & _KEPT_BITS).view(torch.float32)
