# SPDX-License-Identifier: Apache-2.0
"""``npu_grouped_matmul`` of int8 rows with int4 weights (A8W4): CANN's page of ``aclnnGroupedMatmulV5``, for A2 and A3.

The operator multiplies ``x - 8``, and the caller's bias puts the eight weights back; so does this kernel, whose results are
therefore wrong with a wrong bias. Offsets are not modelled; float rows (A16W4) are ``weight_quant.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grouped_rows import MAX_GROUPS, OP, group_ends
from .limits import poison, require, require_contiguous, require_dim, require_dtype, require_shape
from .packed_int4 import PER_WORD, unpacked

INNER_MULTIPLE = 256
MAX_INNER = 18432
_SHIFT = 8.0
Tensors = Sequence[torch.Tensor]


def _one(name: str, tensors: Tensors | None) -> torch.Tensor:
    if not tensors:
        raise RuntimeError(f"{OP}: int4 weights with int8 inputs need {name}, got None")
    require(OP, len(tensors) == 1, f"{name} must hold one tensor with int4 weights", len(tensors))
    return tensors[0]


def int4_grouped(
    x: Tensors,
    weight: Tensors,
    bias: Tensors | None,
    scale: Tensors | None,
    per_token_scale: Tensors | None,
    group_list: torch.Tensor | None,
    kind: int,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """``((x - 8) @ W * scale + bias) * per_token_scale``, per group of inputs and then per expert.

    Args:
        x: one int8 ``[M, K]``; K a multiple of 256 and at most 18432.
        weight: one int32 ``[E, K, N / 8]``, not transposed: eight int4 along N in each, the lowest bits first.
        bias: float32 ``[E, N]``, 8 times the sum over K of weight times scale.
        scale: int64 ``[E, G, N]``, the bits of float32s; one row per K / G inputs. The page has K / G = 256 only; the host
            code takes G from this shape, and vLLM's other Ascend port passes 1.
        per_token_scale: float32 ``[M]``.
        group_list: int64 ``[E]`` counts.
        kind: its notation; counts (1) only.
        dtype: of the result, bfloat16 or float16.

    Returns:
        ``[M, N]``; rows past the groups are unwritten.
    """
    rows, words = _one("x", x), _one("weight", weight)
    require_dim(OP, "x", rows, 2)
    require_dim(OP, "an int4 weight", words, 3)
    require_contiguous(OP, int4_weight=words)
    columns, factors, per_row = _one("bias", bias), _one("scale", scale), _one("per_token_scale", per_token_scale)
    require(OP, kind == 1, "group_list_type must be 1 (counts) with int4 weights", kind)
    require(OP, group_list is not None, "group_type 0 needs group_list", None)
    assert group_list is not None
    require(
        OP,
        dtype in (torch.bfloat16, torch.float16),
        "output_dtype must be bfloat16 or float16 with int4 weights",
        dtype,
    )
    assert dtype is not None
    experts, inner, width = words.shape[0], words.shape[1], words.shape[2] * PER_WORD
    require(OP, experts <= MAX_GROUPS, f"at most {MAX_GROUPS} groups", experts)
    require_shape(OP, "x with these int4 weights", rows, (rows.shape[0], inner))
    fits = inner % INNER_MULTIPLE == 0 and inner <= MAX_INNER
    require(OP, fits, f"K of int4 weights must be a multiple of {INNER_MULTIPLE} and at most {MAX_INNER}", inner)
    require_dtype(OP, "scale of int4 weights", factors, (torch.int64,))
    require_dim(OP, "scale of int4 weights", factors, 3)
    groups = factors.shape[1]
    require_shape(OP, "scale of int4 weights", factors, (experts, groups, width))
    whole = groups > 0 and inner % groups == 0
    require(OP, whole, f"the scale's groups must divide K = {inner}", groups)
    require_dtype(OP, "bias of int4 weights", columns, (torch.float32,))
    require_shape(OP, "bias of int4 weights", columns, (experts, width))
    require_dtype(OP, "per_token_scale", per_row, (torch.float32,))
    require_shape(OP, "per_token_scale (one per row)", per_row, (rows.shape[0],))
    out = poison((rows.shape[0], width), dtype)
    start = 0
    for expert, end in enumerate(group_ends(group_list, kind, experts, rows.shape[0])):
        if end > start:
            part = _product(rows[start:end], words[expert], factors[expert]) + columns[expert].double()
            out[start:end] = (part * per_row[start:end].double().unsqueeze(1)).to(dtype)
        start = end
    return out


def _product(x: torch.Tensor, words: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """float64 ``[m, N]``: each group's exact product times its scales, summed."""
    low = bits & 0xFFFFFFFF
    scales = torch.where(low > 0x7FFFFFFF, low - (1 << 32), low).to(torch.int32).view(torch.float32).double()
    groups, weight = scales.shape[0], unpacked(words).double()
    parts = (x.double() - _SHIFT).chunk(groups, dim=1), weight.chunk(groups, dim=0), scales
    return torch.stack([left @ right * scale for left, right, scale in zip(*parts, strict=True)]).sum(dim=0)
