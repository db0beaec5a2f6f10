# SPDX-License-Identifier: Apache-2.0
"""SwiGLU that ends in int8: ``npu_swiglu_quant``, ``npu_dequant_swiglu_quant``, ``npu_grouped_matmul_swiglu_quant`` (v2).

Every one of them leaves the rows past its groups unwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grouped_matmul import integer_product
from .limits import (
    poison,
    require,
    require_absent,
    require_dim,
    require_dtype,
    require_shape,
    scalar_type,
    unsupported,
)
from .quantise import group_of_rows, quantise_rows

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _gated(x: torch.Tensor, left: bool) -> torch.Tensor:
    """silu of one half times the other half, float32."""
    first, second = x.chunk(2, dim=-1)
    gate, up = (first, second) if left else (second, first)
    return torch.nn.functional.silu(gate) * up


def _quantised(activated: torch.Tensor, smooth: torch.Tensor | None, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise the written rows and put them at the front of outputs of ``rows`` rows."""
    written = activated.shape[0]
    y = poison((rows, activated.shape[1]), torch.int8)
    scale = poison((rows,), torch.float32)
    y[:written], scale[:written] = quantise_rows(activated, smooth)
    return y, scale


def swiglu_quant(
    x: torch.Tensor,
    *,
    smooth_scales: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    group_list_type: int = 0,
    dst_type: torch.dtype | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SwiGLU, then dynamic int8 per row. The defaults are static quantisation and right activation: pass both.

    Args:
        x: ``[..., 2 * N]`` fp16, bf16 or fp32, at least 2-D, the last dimension even and at most 8192.
        smooth_scales: float32 ``[G, N]`` or ``[G]``.
        group_index: int32 ``[G]``: prefix sums (``group_list_type=0``) or counts (1).
        quant_mode: 1 dynamic; 0 (static) is not modelled.

    Returns:
        int8 ``[..., N]`` and float32 ``x.shape[:-1]``.
    """
    op = "npu_swiglu_quant"
    require_dtype(op, "x", x, FLOATS)
    require(op, x.dim() >= 2, "x must have at least 2 dimensions", x.dim())
    last = x.shape[-1]
    require(op, last % 2 == 0 and last <= 8192, "the last dimension of x must be even and at most 8192", last)
    require(op, quant_mode in (0, 1), "quant_mode must be 0 (static) or 1 (dynamic)", quant_mode)
    if quant_mode == 0:
        raise unsupported(op, "static quantisation (quant_mode 0, the default)")
    if scalar_type(op, dst_type) not in (None, torch.int8):
        raise unsupported(op, f"dst_type {dst_type}")
    require_absent(op, offsets=offsets)
    require(op, group_list_type in (0, 1), "group_list_type must be 0 (sums) or 1 (counts)", group_list_type)
    rows, width = x.shape[:-1].numel(), last // 2
    groups = 1
    of_row = torch.zeros(rows, dtype=torch.int64)
    if group_index is not None:
        require_dtype(op, "group_index", group_index, (torch.int32,))
        require_dim(op, "group_index", group_index, 1)
        groups = group_index.shape[0]
        ends = group_index.long() if group_list_type == 0 else group_index.long().cumsum(0)
        rising = bool((ends.diff(prepend=ends.new_zeros(1)) >= 0).all()) and (groups == 0 or int(ends[-1]) <= rows)
        require(op, rising, f"group_index must not fall and cover at most {rows} rows", group_index.tolist())
        of_row = group_of_rows(ends, rows)
    smooth = None
    if smooth_scales is not None:
        require_dtype(op, "smooth_scales", smooth_scales, (torch.float32,))
        shape = (groups,) if smooth_scales.dim() == 1 else (groups, width)
        require_shape(op, "smooth_scales", smooth_scales, shape)
        smooth = smooth_scales[of_row]
        smooth = smooth.unsqueeze(1) if smooth.dim() == 1 else smooth
    activated = _gated(x.float().reshape(rows, last)[: len(of_row)], activate_left)
    y, scale = _quantised(activated, smooth, rows)
    return y.view(*x.shape[:-1], width), scale.view(x.shape[:-1])


def dequant_swiglu_quant(
    x: torch.Tensor,
    *,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | torch.dtype | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise an int32 product, SwiGLU, dynamic int8 per row.

    Args:
        x: int32 or bf16 ``[M, 2 * H]``.
        weight_scale: float32 ``[G, 2 * H]``, for int32 x only, which needs it.
        activation_scale: float32 ``[M]`` or ``[M, 1]``, likewise.
        quant_scale: ``[G, H]`` smooth factors, fp32, fp16 or bf16.
        group_index: int64 ``[G]`` counts, their sum at most M; H at most 10496 and a multiple of 64.
        swiglu_mode: 0 plain; 1 and 2 the clamped form on interleaved or halved columns.

    Returns:
        int8 ``[M, H]`` and float32 ``[M]``; rows past the sum of the counts are unwritten.
    """
    op = "npu_dequant_swiglu_quant"
    require_dim(op, "x", x, 2)
    require_dtype(op, "x", x, (torch.int32, torch.bfloat16))
    rows, last = x.shape
    require(op, last % 2 == 0, "the last dimension of x must be even", last)
    require(op, swiglu_mode in (0, 1, 2), "swiglu_mode must be 0, 1 or 2", swiglu_mode)
    if quant_mode != 1:
        require(op, group_index is None, "quant_mode must be 1 with group_index", quant_mode)
        raise unsupported(op, f"quant_mode {quant_mode} (static, the default)")
    if scalar_type(op, dst_type) not in (None, torch.int8):
        raise unsupported(op, f"dst_type {dst_type}")
    require_absent(op, quant_offset=quant_offset, round_mode=round_mode)
    if activate_dim not in (None, -1, 1):
        raise unsupported(op, f"activate_dim {activate_dim}")
    width = last // 2
    groups, of_row = 1, torch.zeros(rows, dtype=torch.int64)
    if group_index is not None:
        require_dtype(op, "group_index", group_index, (torch.int64,))
        require_dim(op, "group_index", group_index, 1)
        require(op, bias is None, "bias must be None with group_index", "a tensor")
        fits = width <= 10496 and width % 64 == 0
        require(op, fits, "H must be at most 10496 and a multiple of 64 with group_index", width)
        groups, total = group_index.shape[0], int(group_index.sum())
        smallest = int(group_index.min()) if groups else 0
        require(op, smallest >= 0, "group_index must not be negative", group_index.tolist())
        require(op, total <= rows, f"the counts in group_index must sum to at most the {rows} rows of x", total)
        of_row = torch.arange(groups).repeat_interleave(group_index)
    if bias is not None:
        raise unsupported(op, "argument bias")
    values = x[: len(of_row)].float()
    if x.dtype == torch.int32:
        if weight_scale is None or activation_scale is None:
            raise RuntimeError(f"{op}: int32 x needs weight_scale and activation_scale, got None")
        require_dtype(op, "weight_scale", weight_scale, (torch.float32,))
        require_shape(op, "weight_scale", weight_scale, (groups, last))
        require_dtype(op, "activation_scale", activation_scale, (torch.float32,))
        require_shape(op, "activation_scale", activation_scale, (rows, 1) if activation_scale.dim() == 2 else (rows,))
        values = values * weight_scale[of_row] * activation_scale.reshape(rows, 1)[: len(of_row)]
    else:
        plain = weight_scale is None and activation_scale is None
        require(op, plain, "bfloat16 x takes no weight_scale and no activation_scale", "scales")
    smooth = None
    if quant_scale is not None:
        require_dtype(op, "quant_scale", quant_scale, FLOATS)
        require_shape(op, "quant_scale", quant_scale, (groups, width))
        smooth = quant_scale[of_row]
    if swiglu_mode == 0:
        activated = _gated(values, activate_left)
    else:
        activated = _clamped(values, swiglu_mode == 1, activate_left, clamp_limit, glu_alpha, glu_bias)
    return _quantised(activated, smooth, rows)


def _clamped(x: torch.Tensor, interleaved: bool, left: bool, limit: float, alpha: float, bias: float) -> torch.Tensor:
    """``gate * sigmoid(alpha * gate) * (up + bias)`` with gate at most limit and up within +-limit."""
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    gate, up = (first, second) if left or interleaved else (second, first)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + bias)


def _nd_weight(op: str, weight: torch.Tensor) -> torch.Tensor:
    """``[E, K, N]`` from either form of a FRACTAL_NZ weight: cast (logical 3-D) or raw ``[E, N/32, K/16, 16, 32]``."""
    require_dtype(op, "weight", weight, (torch.int8,))
    require_dim(op, "weight", weight, 3, 5)
    if weight.dim() == 3:
        return weight
    experts, columns, rows, *tile = weight.shape
    require(op, tile == [16, 32], "a raw FRACTAL_NZ int8 weight must be [E, N/32, K/16, 16, 32]", list(weight.shape))
    return weight.permute(0, 2, 3, 1, 4).reshape(experts, rows * 16, columns * 32)


def _grouped(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    ends: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    require_dim(op, "x", x, 2)
    require_dtype(op, "x", x, (torch.int8,))
    weight = _nd_weight(op, weight)
    rows, inner = x.shape
    experts, depth, last = weight.shape
    require(op, depth == inner, f"weight must have K = {inner} rows", depth)
    require(op, last % 2 == 0, "N must be even", last)
    require(op, inner <= 65535 and last <= 10240, "K must be at most 65535 and N at most 10240", [inner, last])
    require_shape(op, "weight_scale", weight_scale, (experts, last))
    require_dtype(op, "x_scale", x_scale, (torch.float32,))
    require_shape(op, "x_scale", x_scale, (rows,))
    rising = bool((ends.diff(prepend=ends.new_zeros(1)) >= 0).all()) and (experts == 0 or int(ends[-1]) <= rows)
    require(op, rising, f"group_list must not fall and cover at most {rows} rows", ends.tolist())
    parts, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            product = integer_product(x[start:end], weight[expert]) * weight_scale[expert].double()
            parts.append(_gated((product * x_scale[start:end].double().unsqueeze(1)).float(), left=True))
        start = end
    activated = torch.cat(parts) if parts else x_scale.new_empty(0, last // 2)
    return _quantised(activated, None, rows)


def grouped_matmul_swiglu_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    group_list: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W8A8 product per expert, dequantised, SwiGLU (left half activated), int8 per row.

    Args:
        x: int8 ``[M, K]``.
        weight: int8 FRACTAL_NZ: ``[E, K, N]`` cast to format 29, or raw ``[E, N/32, K/16, 16, 32]``.
        group_list: int64 ``[E]`` prefix sums.
        weight_scale: ``[E, N]`` fp32, fp16 or bf16.
        x_scale: float32 ``[M]``.

    Returns:
        int8 ``[M, N/2]``, float32 ``[M]`` and a reserved scalar. Rows past ``group_list[-1]`` are unwritten.
    """
    op = "npu_grouped_matmul_swiglu_quant"
    require(op, bias is None and offset is None, "bias and offset must be None", "a tensor")
    require_dtype(op, "weight_scale", weight_scale, FLOATS)
    require_dtype(op, "group_list", group_list, (torch.int64,))
    require_shape(op, "group_list (one entry per expert)", group_list, (weight.shape[0],))
    y, scale = _grouped(op, x, weight, weight_scale, x_scale, group_list)
    return y, scale, poison((), torch.float32)


def grouped_matmul_swiglu_quant_v2(
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    weight_scale: Sequence[torch.Tensor],
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
    *,
    smooth_scale: torch.Tensor | None = None,
    weight_assist_matrix: Sequence[torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
    dequant_mode: int | None = 0,
    dequant_dtype: int | None = 6,
    quant_mode: int | None = 0,
    quant_dtype: int | None = 1,
    group_list_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    **dtypes: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Version 2 (torch_npu 2.13): lists of one tensor, float32 weight scales, prefix sums (0) or counts (1)."""
    op = "npu_grouped_matmul_swiglu_quant_v2"
    for name, tensors in (("weight", weight), ("weight_scale", weight_scale)):
        require(op, len(tensors) == 1, f"{name} must hold one tensor", len(tensors))
    if weight[0].dtype == torch.int32:
        raise unsupported(op, "int4 weights (packed as int32)")
    require(op, bias is None, "bias must be None", "a tensor")
    unused = smooth_scale is None and not weight_assist_matrix
    require(op, unused, "smooth_scale and weight_assist_matrix must be None for W8A8", "a tensor")
    require(op, not dequant_mode, "dequant_mode must be 0 for int8 weights", dequant_mode)
    require(op, dequant_dtype in (None, 6), "dequant_dtype must be 6 (float32)", dequant_dtype)
    require(op, not quant_mode, "quant_mode must be 0 (per token)", quant_mode)
    require(op, quant_dtype in (None, 0, 1), "quant_dtype must be left at its default (int8)", quant_dtype)
    require(op, group_list_type in (None, 0, 1), "group_list_type must be 0 (sums) or 1 (counts)", group_list_type)
    require_absent(op, **dtypes)
    require_dtype(op, "weight_scale", weight_scale[0], (torch.float32,))
    require_dtype(op, "group_list", group_list, (torch.int64,))
    require_shape(op, "group_list (one entry per expert)", group_list, (weight[0].shape[0],))
    ends = group_list.cumsum(0) if group_list_type == 1 else group_list
    return _grouped(op, x, weight[0], weight_scale[0], x_scale, ends)
