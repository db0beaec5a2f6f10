# SPDX-License-Identifier: Apache-2.0
"""``npu_grouped_matmul``: the matrix products of the experts. No activation but ``act_type``.

Products accumulate in float32 (float types) or exactly (int8), and are rounded once to the output dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grouped_int4 import int4_grouped
from .grouped_rows import MAX_GROUPS, OP, group_ends
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
from .weight_quant import grouped_weight_quant

INNER_LIMIT = 65536
MAX_LIST = 128
_ACTIVATIONS = {
    1: torch.relu,
    2: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    4: lambda x: x * torch.sigmoid(1.702 * x),
    5: torch.nn.functional.silu,
}
Tensors = Sequence[torch.Tensor]


def integer_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int8 x int8 as float64, which is exact: every sum is below 2**53 (and below 2**31 on the device)."""
    return x.double() @ weight.double()


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """float32 (or exact float64 for int8) product plus bias."""
    if x.dtype == torch.int8:
        product = integer_product(x, weight)
        return product if bias is None else product + bias.double()
    product = x.float() @ weight.float()
    return product if bias is None else product + bias.float()


class _Quantisation:
    """How an int8 product becomes its output: scales per column, per row, or none (int32 output)."""

    def __init__(
        self, x: torch.Tensor, scale: Tensors | None, per_token_scale: Tensors | None, dtype: torch.dtype | None
    ) -> None:
        self.scale = None if not scale else list(scale)
        self.per_token = None if not per_token_scale else per_token_scale[0]
        if x.dtype != torch.int8:
            plain = self.scale is None and self.per_token is None
            require(OP, plain, f"{x.dtype} inputs take no scale and no per_token_scale", "scales")
            require(OP, dtype in (None, x.dtype), f"output_dtype must be None or {x.dtype}", dtype)
            self.dtype = x.dtype
            return
        if dtype == torch.int32:
            plain = self.scale is None and self.per_token is None
            require(OP, plain, "int32 output takes no scale and no per_token_scale", "scales")
            self.dtype = torch.int32
            return
        if self.scale is None:
            raise RuntimeError(f"{OP}: int8 inputs need scale (or output_dtype int32), got None")
        kind = self.scale[0].dtype
        if kind == torch.int64:
            raise unsupported(OP, "int64 scale (npu_trans_quant_param)")
        require_dtype(OP, "scale", self.scale[0], (torch.bfloat16, torch.float32))
        wanted = torch.bfloat16 if kind == torch.bfloat16 else torch.float16
        require(OP, dtype == wanted, f"output_dtype with a {kind} scale must be {wanted} on A2 and A3", dtype)
        self.dtype = wanted
        if self.per_token is not None:
            require(
                OP, len(per_token_scale or ()) == 1, "per_token_scale must hold one tensor", len(per_token_scale or ())
            )
            require_dtype(OP, "per_token_scale", self.per_token, (torch.float32,))
            require_shape(OP, "per_token_scale (one per row)", self.per_token, (x.shape[0],))

    def columns(self, group: int, width: int, groups: int) -> torch.Tensor | None:
        if self.scale is None:
            return None
        if (len(self.scale) == 1 and groups > 1) or self.scale[0].dim() == 2:
            require_shape(OP, "scale of a 3-D weight", self.scale[0], (groups, width))
            return self.scale[0][group]
        require_shape(OP, "scale of one expert", self.scale[group], (width,))
        return self.scale[group]


def _experts(weight: Tensors) -> list[torch.Tensor]:
    """The experts' 2-D weights, ``[K, N]`` each."""
    if len(weight) == 1 and weight[0].dim() == 3:
        return list(weight[0].unbind(0))
    require(OP, len(weight) <= MAX_LIST, f"a weight list must hold at most {MAX_LIST} tensors", len(weight))
    for tensor in weight:
        require_dim(OP, "a weight of a list", tensor, 2)
    return list(weight)


def _inner(tensor: torch.Tensor) -> int:
    """The dimension that is contiguous in memory: N, or K of a transposed view."""
    return tensor.shape[-2] if tensor.stride(-2) == 1 and tensor.stride(-1) != 1 else tensor.shape[-1]


def _check_operands(x: Tensors, weight: Tensors, bias: Tensors | None) -> None:
    require(OP, 0 < len(x) <= MAX_LIST and len(weight) > 0, f"x and weight must hold 1 to {MAX_LIST} tensors", len(x))
    dtype = x[0].dtype
    require_dtype(OP, "x", x[0], (torch.float16, torch.bfloat16, torch.float32, torch.int8))
    for name, tensors in (("x", x), ("weight", weight)):
        for tensor in tensors:
            if dtype != torch.int8 and tensor.dtype in (torch.int8, torch.int32):
                raise unsupported(OP, "quantised weights with float activations")
            require(OP, tensor.dtype == dtype, f"{name} must have the dtype of x ({dtype})", tensor.dtype)
            inner = _inner(tensor)
            require(OP, inner < INNER_LIMIT, f"the inner dimension of {name} must be below {INNER_LIMIT}", inner)
    if bias:
        wanted = {torch.float16: torch.float16, torch.int8: torch.int32}.get(dtype, torch.float32)
        for tensor in bias:
            require_dtype(OP, f"bias of {dtype} inputs", tensor, (wanted,))
        require(OP, len(bias) == len(weight), f"bias must hold {len(weight)} tensor(s)", len(bias))


def _bias(bias: Tensors | None, group: int) -> torch.Tensor | None:
    if not bias:
        return None
    return bias[0][group] if bias[0].dim() == 2 else bias[group]


def _separate(
    x: Tensors, weight: Tensors, bias: Tensors | None, how: _Quantisation, split_item: int
) -> list[torch.Tensor]:
    """group_type -1: independent products."""
    require(OP, split_item in (0, 1), "group_type -1 needs split_item 0 or 1", split_item)
    require(OP, len(weight) == len(x), f"group_type -1 needs one weight per x ({len(x)})", len(weight))
    if x[0].dtype == torch.int8 and how.dtype != torch.int32:
        raise unsupported(OP, "group_type -1 with scales")
    out = []
    for index, (left, right) in enumerate(zip(x, weight, strict=True)):
        require_dim(OP, "a weight of a list", right, 2)
        require(OP, 2 <= left.dim() <= 6, "x must have 2 to 6 dimensions", left.dim())
        require(OP, left.shape[-1] == right.shape[0], f"weight {index} must have {left.shape[-1]} rows", right.shape[0])
        out.append(_product(left, right, _bias(bias, index)).to(how.dtype))
    return out


def grouped_matmul(
    x: Tensors,
    weight: Tensors,
    *,
    bias: Tensors | None = None,
    scale: Tensors | None = None,
    offset: Tensors | None = None,
    antiquant_scale: Tensors | None = None,
    antiquant_offset: Tensors | None = None,
    per_token_scale: Tensors | None = None,
    group_list: torch.Tensor | Sequence[int] | None = None,
    activation_input: Tensors | None = None,
    activation_quant_scale: Tensors | None = None,
    activation_quant_offset: Tensors | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    output_dtype: int | torch.dtype | None = None,
    **dtypes: int | None,
) -> list[torch.Tensor]:
    """Rows of x, cut into consecutive groups, each times its own weight.

    int4 weights, eight in an int32, are ``grouped_int4.py``'s with int8 rows, ``weight_quant.py``'s with float ones.

    Args:
        x: one ``[M, K]`` tensor, or (group_type -1) one per weight; fp16, bf16, fp32 or int8.
        weight: one ``[E, K, N]`` tensor (a transposed view is fine) or at most 128 ``[K, N]`` tensors; dtype of x.
        bias: fp16 for fp16, float32 for bf16 and fp32, int32 for int8.
        scale: int8 only: ``[E, N]``; bf16 for bf16 output, float32 for fp16 output.
        per_token_scale: int8 only: float32 ``[M]``.
        group_list: int64 ``[E]``: prefix sums (group_list_type 0), counts (1), or ``[E, 2]`` pairs (2, int8 only). Rows
            past the last group stay unwritten.
        group_type: must be passed: -1 separate products, 0 groups of rows.
        split_item: 0 or 1 a list of results, 2 or 3 one tensor.
    """
    require_absent(
        OP,
        offset=offset or None,
        activation_input=activation_input or None,
        activation_quant_scale=activation_quant_scale or None,
        activation_quant_offset=activation_quant_offset or None,
        **dtypes,
    )
    if group_list is not None and not isinstance(group_list, torch.Tensor):
        raise unsupported(OP, "a Python-list group_list (pass an int64 tensor and group_type)")
    require(OP, group_type is not None, "group_type must be passed (-1 or 0)", None)
    if group_type == 2:
        raise unsupported(OP, "group_type 2 (split K, training)")
    require(OP, group_type in (-1, 0), "group_type must be -1 or 0", group_type)
    split_item, kind, act = split_item or 0, group_list_type or 0, act_type or 0
    if len(weight) and weight[0].dtype == torch.int32:
        fits = group_type == 0 and split_item in (2, 3) and act == 0
        require(
            OP, fits, "int4 weights need group_type 0, split_item 2 or 3 and act_type 0", (group_type, split_item, act)
        )
        dtype = scalar_type(OP, output_dtype)
        if len(x) and x[0].dtype == torch.int8:
            require_absent(OP, antiquant_scale=antiquant_scale or None, antiquant_offset=antiquant_offset or None)
            return [int4_grouped(x, weight, bias, scale, per_token_scale, group_list, kind, dtype)]
        plain = not scale and not per_token_scale
        require(OP, plain, "float inputs take no scale and no per_token_scale with int4 weights", "scales")
        scales = antiquant_scale, antiquant_offset
        return [grouped_weight_quant(x, weight, bias, *scales, group_list, kind, dtype)]
    require_absent(OP, antiquant_scale=antiquant_scale or None, antiquant_offset=antiquant_offset or None)
    require(OP, split_item in (0, 1, 2, 3), "split_item must be 0 to 3", split_item)
    require(OP, act == 0 or act in _ACTIVATIONS, "act_type must be 0, 1, 2, 4 or 5", act)
    _check_operands(x, weight, bias)
    how = _Quantisation(x[0], scale, per_token_scale, scalar_type(OP, output_dtype))
    require(OP, act == 0 or how.per_token is not None, "act_type needs per_token_scale (per-token quantisation)", act)
    if group_type == -1:
        require(OP, group_list is None, "group_type -1 takes no group_list", "a tensor")
        return _separate(x, weight, bias, how, split_item)
    require(OP, split_item in (2, 3), "group_type 0 needs split_item 2 or 3", split_item)
    if len(x) != 1:
        raise unsupported(OP, "group_type 0 with several x")
    require_dim(OP, "x", x[0], 2)
    if group_list is None:
        raise RuntimeError(f"{OP}: group_type 0 needs group_list, got None")
    require(OP, kind != 2 or x[0].dtype == torch.int8, "group_list_type 2 needs int8 inputs", x[0].dtype)
    return [_grouped(x[0], _experts(weight), bias, how, group_list, kind, act)]


def _grouped(
    x: torch.Tensor,
    experts: list[torch.Tensor],
    bias: Tensors | None,
    how: _Quantisation,
    group_list: torch.Tensor,
    kind: int,
    act: int,
) -> torch.Tensor:
    """group_type 0: one product per group that has rows."""
    rows, inner = x.shape
    require(OP, len(experts) <= MAX_GROUPS, f"at most {MAX_GROUPS} groups", len(experts))
    width = experts[0].shape[1]
    for index, expert in enumerate(experts):
        require_shape(OP, f"weight of expert {index}", expert, (inner, width))
    out = poison((rows, width), how.dtype)
    start = 0
    for group, end in enumerate(group_ends(group_list, kind, len(experts), rows)):
        if end > start:
            part = _product(x[start:end], experts[group], _bias(bias, group))
            columns = how.columns(group, width, len(experts))
            if columns is not None:
                part = part * columns.double()
            if how.per_token is not None:
                part = part * how.per_token[start:end].double().unsqueeze(1)
            if act:
                part = _ACTIVATIONS[act](part.float())
            out[start:end] = part.to(how.dtype)
        start = end
    return out
