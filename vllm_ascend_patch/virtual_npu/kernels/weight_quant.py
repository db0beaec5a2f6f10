# SPDX-License-Identifier: Apache-2.0
"""Products of float rows with int4 weights (A16W4): ``npu_weight_quant_batchmatmul``, and that form of the grouped product.

Weights become numbers of the rows' dtype, ``(weight + offset) * scale`` rounded once, as AscendC's AscendAntiQuant has
it; products accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grouped_rows import MAX_GROUPS, OP, group_ends
from .limits import poison, require, require_dim, require_dtype, require_shape, unsupported
from .packed_int4 import is_transposed, matrices

MAX_SIDE = 65535
GROUP_MULTIPLE = 32
HALVES = (torch.float16, torch.bfloat16)
Tensors = Sequence[torch.Tensor]


def _bias_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float16 if dtype == torch.float16 else torch.float32


def _dequantised(weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """float32 ``[..., K, N]`` with the values of the scale's dtype; scale and offset ``[..., G, N]``."""
    size = weight.shape[-2] // scale.shape[-2]
    whole = weight.double()
    if offset is not None:
        whole = whole + offset.double().repeat_interleave(size, dim=-2)
    return (whole * scale.double().repeat_interleave(size, dim=-2)).to(scale.dtype).float()


def weight_quant_batchmatmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    antiquant_scale: torch.Tensor,
    antiquant_offset: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> torch.Tensor:
    """``x @ ((weight + offset) * scale) + bias`` for int4 weights.

    Args:
        x: fp16 or bf16 ``[M, K]``; not empty.
        weight: int32 ``[K, N / 8]``, or a transposed view ``[K / 8, N]``.
        antiquant_scale: of x's dtype; ``[1, N]`` or ``[N]``, with a group size ``[K / group size, N]``.
        antiquant_offset: like the scale, or None.
        bias: ``[N]`` or ``[1, N]``; fp16 for fp16, float32 for bf16.
        antiquant_group_size: 0, or inputs that share a scale: 32 to K - 1 in steps of 32.

    Returns:
        ``[M, N]`` of x's dtype.
    """
    op = "npu_weight_quant_batchmatmul"
    for name, value in (("quant_scale", quant_scale), ("quant_offset", quant_offset), ("weight_dtype", weight_dtype)):
        if value is not None:
            raise unsupported(op, f"argument {name}")
    if weight.dtype == torch.int8:
        raise unsupported(op, "int8 weights")
    require_dtype(op, "x", x, HALVES)
    require_dim(op, "x", x, 2)
    require_dim(op, "weight", weight, 2)
    require(op, inner_precise == 0, "inner_precise must be 0 for weights in a plain layout", inner_precise)
    whole = matrices(op, weight)
    inner, width = whole.shape
    require_shape(op, "x with this weight", x, (x.shape[0], inner))
    require(op, x.numel() > 0 and whole.numel() > 0, "x and weight must not be empty", [list(x.shape), [inner, width]])
    require(op, max(inner, width) <= MAX_SIDE, f"K and N must be at most {MAX_SIDE}", [inner, width])
    require_dtype(op, "antiquant_scale", antiquant_scale, (x.dtype,))
    size, scale = antiquant_group_size, antiquant_scale
    if size == 0:
        require(op, scale.numel() == width, f"antiquant_scale must have N = {width} elements", list(scale.shape))
        scale = scale.reshape(1, width)
    else:
        fits = GROUP_MULTIPLE <= size < inner and size % GROUP_MULTIPLE == 0
        require(op, fits, f"antiquant_group_size must be 32 to K - 1 = {inner - 1} in steps of {GROUP_MULTIPLE}", size)
        if inner % size:
            raise unsupported(op, "a last group that is not full")
        require_shape(op, "antiquant_scale with groups", scale, (inner // size, width))
    if antiquant_offset is not None:
        require_dtype(op, "antiquant_offset", antiquant_offset, (x.dtype,))
        require_shape(op, "antiquant_offset (as antiquant_scale)", antiquant_offset, antiquant_scale.shape)
        antiquant_offset = antiquant_offset.reshape(scale.shape)
    if bias is not None:
        require_dtype(op, f"bias of {x.dtype} inputs", bias, (_bias_dtype(x.dtype),))
        require(
            op, tuple(bias.shape) in ((width,), (1, width)), f"bias must have N = {width} elements", list(bias.shape)
        )
    product = x.float() @ _dequantised(whole, scale, antiquant_offset)
    return (product if bias is None else product + bias.float()).to(x.dtype)


def _one(name: str, tensors: Tensors | None) -> torch.Tensor:
    if not tensors:
        raise RuntimeError(f"{OP}: int4 weights with float inputs need {name}, got None")
    require(OP, len(tensors) == 1, f"{name} must hold one tensor with int4 weights", len(tensors))
    return tensors[0]


def grouped_weight_quant(
    x: Tensors,
    weight: Tensors,
    bias: Tensors | None,
    antiquant_scale: Tensors | None,
    antiquant_offset: Tensors | None,
    group_list: torch.Tensor | None,
    kind: int,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """``x @ ((W + offset) * scale) + bias``, each expert with its rows.

    Args:
        x: one fp16 or bf16 ``[M, K]``.
        weight: one int32 ``[E, K, N / 8]``, or a transposed view ``[E, K / 8, N]``.
        bias: ``[E, N]``, fp16 for fp16 and float32 for bf16, or None.
        antiquant_scale: one of x's dtype, ``[E, N]`` or ``[E, G, N]``: G groups of inputs.
        antiquant_offset: like the scale; zeros with groups.
        group_list: int64 ``[E]``.
        kind: its notation: sums (0) or counts (1).
        dtype: of the result: x's, or None.

    Returns:
        ``[M, N]``; rows past the groups are unwritten.
    """
    rows, words = _one("x", x), _one("weight", weight)
    require_dtype(OP, "x with int4 weights", rows, HALVES)
    require_dim(OP, "x", rows, 2)
    require_dim(OP, "an int4 weight", words, 3)
    whole = matrices(OP, words)
    experts, inner, width = whole.shape
    require(OP, experts <= MAX_GROUPS, f"at most {MAX_GROUPS} groups", experts)
    last = inner if is_transposed(words) else width
    require(OP, last <= MAX_SIDE, f"the last dimension of an int4 weight must be at most {MAX_SIDE}", last)
    require_shape(OP, "x with these int4 weights", rows, (rows.shape[0], inner))
    scale, offset = _one("antiquant_scale", antiquant_scale), _one("antiquant_offset", antiquant_offset)
    require_dtype(OP, "antiquant_scale", scale, (rows.dtype,))
    require_dtype(OP, "antiquant_offset", offset, (rows.dtype,))
    require_dim(OP, "antiquant_scale", scale, 2, 3)
    require_shape(OP, "antiquant_offset (as antiquant_scale)", offset, scale.shape)
    groups = 1 if scale.dim() == 2 else scale.shape[1]
    require_shape(OP, "antiquant_scale", scale, (experts, width) if scale.dim() == 2 else (experts, groups, width))
    require(OP, groups > 0 and inner % groups == 0, f"the groups of antiquant_scale must divide K = {inner}", groups)
    even = not is_transposed(words) or groups == 1 or inner // groups % 2 == 0
    require(OP, even, "groups of a transposed int4 weight must have an even size", inner // groups)
    symmetric = scale.dim() == 2 or not bool(offset.any())
    require(OP, symmetric, "antiquant_offset must be zero with groups", "others")
    require(OP, dtype in (None, rows.dtype), f"output_dtype must be None or {rows.dtype}", dtype)
    require(OP, kind in (0, 1), "group_list_type must be 0 or 1 with int4 weights and float inputs", kind)
    require(OP, group_list is not None, "group_type 0 needs group_list", None)
    assert group_list is not None
    columns = None if not bias else _one("bias", bias)
    if columns is not None:
        require_dtype(OP, f"bias of {rows.dtype} inputs", columns, (_bias_dtype(rows.dtype),))
        require_shape(OP, "bias", columns, (experts, width))
    shape = (experts, groups, width)
    out = poison((rows.shape[0], width), rows.dtype)
    start = 0
    for expert, end in enumerate(group_ends(group_list, kind, experts, rows.shape[0])):
        if end > start:
            weights = _dequantised(whole[expert], scale.reshape(shape)[expert], offset.reshape(shape)[expert])
            part = rows[start:end].float() @ weights
            out[start:end] = (part if columns is None else part + columns[expert].float()).to(rows.dtype)
        start = end
    return out
