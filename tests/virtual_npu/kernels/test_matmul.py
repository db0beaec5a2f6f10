# SPDX-License-Identifier: Apache-2.0
"""Grouped and quantised products: values against float64 loops over experts, unwritten rows, every documented limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ascend_patch.virtual_npu.kernels.grouped_matmul import grouped_matmul
from vllm_ascend_patch.virtual_npu.kernels.quant_matmul import dynamic_quant, quant_matmul
from vllm_ascend_patch.virtual_npu.kernels.quantised_activation import (
    dequant_swiglu_quant,
    grouped_matmul_swiglu_quant,
    grouped_matmul_swiglu_quant_v2,
    swiglu_quant,
)
from vllm_ascend_patch.virtual_npu.kernels.static_quant import quantize
from vllm_ascend_patch.virtual_npu.kernels.weight_quant import weight_quant_batchmatmul

from .reference import assert_close, assert_quantised, f64, is_poison, silu

counts_lists = st.lists(st.integers(0, 4), min_size=1, max_size=4)
floats = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def refuses(op: str, message: str) -> Any:
    return pytest.raises(RuntimeError, match=f"^{op}: .*{message}")


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def bounds(counts: list[int]) -> list[tuple[int, int, int]]:
    """(expert, first row, end) of every group."""
    ends = np.cumsum(counts)
    return [(e, int(ends[e] - counts[e]), int(ends[e])) for e in range(len(counts))]


@given(
    counts=counts_lists,
    spare=st.integers(0, 3),
    dtype=floats,
    kind=st.sampled_from([0, 1]),
    transposed=st.booleans(),
    listed=st.booleans(),
    biased=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_grouped_matmul_of_floats(
    counts: list[int], spare: int, dtype: torch.dtype, kind: int, transposed: bool, listed: bool, biased: bool
) -> None:
    torch.manual_seed(sum(counts))
    experts, rows = len(counts), sum(counts) + spare
    x = torch.randn(rows, 8).to(dtype)
    weight = torch.randn(experts, 5, 8).to(dtype).transpose(1, 2)
    weight = weight if transposed else weight.contiguous()
    bias = torch.randn(experts, 5).to(torch.float16 if dtype == torch.float16 else torch.float32)
    group_list = torch.tensor(counts if kind else np.cumsum(counts).tolist())
    biases = (list(bias) if listed else [bias]) if biased else None
    (out,) = grouped_matmul(
        [x],
        list(weight) if listed else [weight],
        bias=biases,
        group_list=group_list,
        group_list_type=kind,
        group_type=0,
        split_item=2,
    )
    assert out.dtype == dtype
    assert is_poison(out[sum(counts) :])
    for e, first, end in bounds(counts):
        want = f64(x)[first:end] @ f64(weight)[e] + (f64(bias)[e] if biased else 0)
        assert_close(out[first:end], want, scale=8)


@given(
    counts=counts_lists,
    spare=st.integers(0, 3),
    output=st.sampled_from([torch.bfloat16, torch.float16, torch.int32]),
    per_token=st.booleans(),
    biased=st.booleans(),
    pairs=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_grouped_matmul_of_int8(
    counts: list[int], spare: int, output: torch.dtype, per_token: bool, biased: bool, pairs: bool
) -> None:
    torch.manual_seed(sum(counts))
    experts, rows = len(counts), sum(counts) + spare
    x, weight = int8(rows, 32), int8(experts, 32, 5)
    scale = torch.rand(experts, 5).to(torch.bfloat16 if output == torch.bfloat16 else torch.float32) / 1000
    row_scale = torch.rand(rows)
    bias = torch.randint(-1000, 1000, (experts, 5), dtype=torch.int32)
    group_list = torch.tensor(counts)
    if pairs:
        filled = [[e, c] for e, c in enumerate(counts) if c]
        group_list = torch.tensor(filled + [[0, 0]] * (experts - len(filled)))
    scaled = output != torch.int32
    (out,) = grouped_matmul(
        [x],
        [weight],
        scale=[scale] if scaled else None,
        per_token_scale=[row_scale] if scaled and per_token else None,
        bias=[bias] if biased else None,
        group_list=group_list,
        group_list_type=2 if pairs else 1,
        group_type=0,
        split_item=3,
        output_dtype=output,
    )
    assert out.dtype == output
    assert is_poison(out[sum(counts) :])
    for e, first, end in bounds(counts):
        want = f64(x)[first:end] @ f64(weight)[e] + (f64(bias)[e] if biased else 0)
        if not scaled:
            np.testing.assert_array_equal(f64(out[first:end]), want)
            continue
        want = want * f64(scale)[e] * (f64(row_scale)[first:end, None] if per_token else 1)
        assert_close(out[first:end], want, scale=1)


def test_grouped_matmul_activation_and_separate_products() -> None:
    x, weight = int8(4, 16), int8(2, 16, 6)
    scale, row_scale = torch.full((2, 6), 0.001), torch.rand(4)
    (out,) = grouped_matmul(
        [x],
        [weight],
        scale=[scale],
        per_token_scale=[row_scale],
        group_list=torch.tensor([1, 4]),
        group_type=0,
        split_item=2,
        act_type=5,
        output_dtype=torch.float16,
    )
    want = np.concatenate([f64(x)[:1] @ f64(weight)[0], f64(x)[1:] @ f64(weight)[1]]) * 0.001
    assert_close(out, silu(want * f64(row_scale)[:, None]), scale=2)
    left = [torch.randn(2, 3, 4), torch.randn(5, 6, 4)]
    right = [torch.randn(4, 2), torch.randn(4, 7)]
    outputs = grouped_matmul(left, right, group_type=-1)
    for out, a, b in zip(outputs, left, right, strict=True):
        assert_close(out, f64(a) @ f64(b), scale=8)


def test_grouped_matmul_limits() -> None:
    def call(**changes: Any) -> None:
        arguments = {
            "x": [torch.zeros(4, 8)],
            "weight": [torch.zeros(2, 8, 5)],
            "group_list": torch.tensor([1, 3]),
            "group_type": 0,
            "group_list_type": 1,
            "split_item": 2,
        }
        grouped_matmul(**{**arguments, **changes})

    half, bf16 = torch.zeros(4, 8).half(), torch.zeros(4, 8).bfloat16()
    quant = {"x": [int8(4, 8)], "weight": [int8(2, 8, 5)]}
    call()
    for changes, message in (
        ({"group_type": None}, "group_type must be passed"),
        ({"group_type": 1}, "group_type must be -1 or 0, got 1"),
        ({"split_item": 0}, "group_type 0 needs split_item 2 or 3"),
        ({"group_list": None}, "group_type 0 needs group_list"),
        ({"group_list": torch.tensor([1, 3], dtype=torch.int32)}, "group_list must be int64"),
        ({"group_list": torch.tensor([1, 4])}, "cover at most the 4 rows of x"),
        ({"group_list": torch.tensor([1, -1])}, "must not be negative or fall"),
        ({"group_list": torch.tensor([3, 1]), "group_list_type": 0}, "must not be negative or fall"),
        ({"group_list": torch.tensor([1, 1, 1])}, "one entry per expert"),
        ({"group_list_type": 3}, "group_list_type must be"),
        ({"group_list": torch.tensor([[0, 1], [0, 0]]), "group_list_type": 2}, "needs int8 inputs"),
        ({"weight": [torch.zeros(2, 7, 5)]}, r"weight of expert 0 must have shape \[8, 7\]|must have shape"),
        ({"weight": [torch.zeros(2, 8, 5).half()]}, "weight must have the dtype of x"),
        ({"x": [half], "weight": [torch.zeros(2, 8, 5).half()], "bias": [torch.zeros(2, 5)]}, "bias of .* float16"),
        ({"x": [bf16], "weight": [torch.zeros(2, 8, 5).bfloat16()], "bias": [torch.zeros(2, 5).bfloat16()]}, "float32"),
        ({"x": [bf16], "weight": [torch.zeros(2, 8, 5).bfloat16()], "output_dtype": torch.float32}, "output_dtype"),
        ({"act_type": 5}, "act_type needs per_token_scale"),
        ({"act_type": 3}, "act_type must be"),
        (quant, "int8 inputs need scale"),
        (quant | {"scale": [torch.zeros(2, 5)], "output_dtype": torch.bfloat16}, "output_dtype with a torch.float32"),
        (quant | {"scale": [torch.zeros(5)], "output_dtype": torch.float16}, "scale of a 3-D weight"),
        (
            quant | {"scale": [torch.zeros(2, 5)], "output_dtype": torch.float16, "per_token_scale": [torch.zeros(3)]},
            "per_token_scale .* must have shape",
        ),
        ({"x": [torch.zeros(1, 65536)], "weight": [torch.zeros(2, 65536, 1)]}, "inner dimension of x must be below"),
        ({"weight": [torch.zeros(8, 5)] * 129}, "at most 128 tensors"),
        ({"weight": [torch.zeros(1025, 8, 1)], "group_list": torch.zeros(1025).long()}, "at most 1024 groups"),
    ):
        with refuses("npu_grouped_matmul", message):
            call(**changes)
    for unsupported, message in (
        ({"group_type": 2}, "split K"),
        ({"group_list": [1, 3], "group_type": None}, "Python-list group_list"),
        ({"weight": [int8(2, 8, 5)]}, "quantised weights"),
        ({"antiquant_scale": [torch.zeros(1)]}, "antiquant_scale"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            call(**unsupported)


def packed_by_hand(weight: np.ndarray) -> torch.Tensor:
    """int32 ``[E, K, N / 8]``: the weight of column 8 j + i has the bits 4 i to 4 i + 3."""
    words = np.zeros((*weight.shape[:2], weight.shape[2] // 8), dtype=np.uint32)
    for column in range(weight.shape[2]):
        words[:, :, column // 8] |= (weight[:, :, column] & 15).astype(np.uint32) << np.uint32(4 * (column % 8))
    return torch.from_numpy(words.view(np.int32))


def int4_call(counts: list[int], spare: int, groups: int, dtype: torch.dtype, correct: bool = True) -> dict[str, Any]:
    """The arguments of an A8W4 product, and ``exact``: its weights in float64."""
    random = np.random.default_rng(sum(counts))
    experts, inner, width = len(counts), 512, 16
    weight = random.integers(-8, 8, (experts, inner, width))
    scale = torch.from_numpy(random.random((experts, groups, width), dtype=np.float32) / 100)
    exact = weight * f64(scale).repeat(inner // groups, axis=1)
    rows = sum(counts) + spare
    return {
        "exact": exact,
        "x": [int8(rows, inner)],
        "weight": [packed_by_hand(weight)],
        "scale": [scale.view(torch.int32).long() & 0xFFFFFFFF],
        "bias": [torch.from_numpy(8 * exact.sum(axis=1)).float() * (1 if correct else 2)],
        "per_token_scale": [torch.rand(rows)],
        "group_list": torch.tensor(counts),
        "group_list_type": 1,
        "group_type": 0,
        "split_item": 2,
        "output_dtype": dtype,
    }


@given(
    counts=counts_lists,
    spare=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    correct=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_grouped_matmul_of_int4_weights_needs_eight_times_their_sum_as_bias(
    counts: list[int], spare: int, groups: int, dtype: torch.dtype, correct: bool
) -> None:
    call = int4_call(counts, spare, groups, dtype, correct)
    exact = call.pop("exact")
    (out,) = grouped_matmul(**call)
    assert out.dtype == dtype
    assert is_poison(out[sum(counts) :])
    for e, first, end in bounds(counts):
        want = f64(call["x"][0])[first:end] @ exact[e] + (0 if correct else 8 * exact[e].sum(axis=0))
        assert_close(out[first:end], want * f64(call["per_token_scale"][0])[first:end, None], scale=4)


def test_grouped_matmul_of_int4_limits() -> None:
    legal = int4_call([1, 2], 1, 2, torch.bfloat16)
    del legal["exact"]
    words, scale, bias, x = (legal[name][0] for name in ("weight", "scale", "bias", "x"))
    grouped_matmul(**legal)
    long = torch.zeros(1, 18688, 1, dtype=torch.int32)
    for changes, message in (
        ({"group_type": -1}, "int4 weights need group_type 0, split_item 2 or 3 and act_type 0"),
        ({"act_type": 5}, "int4 weights need group_type 0"),
        ({"bias": None}, "int4 weights with int8 inputs need bias"),
        ({"scale": None}, "int4 weights with int8 inputs need scale"),
        ({"per_token_scale": None}, "int4 weights with int8 inputs need per_token_scale"),
        ({"weight": [words] * 2}, "weight must hold one tensor with int4 weights"),
        ({"x": [x.float()]}, "float inputs take no scale and no per_token_scale with int4 weights"),
        ({"x": [x[0]]}, "x must have 2 dimension"),
        ({"weight": [words[0]]}, "an int4 weight must have 3 dimension"),
        ({"weight": [words.transpose(1, 2).contiguous().transpose(1, 2)]}, "int4_weight must be contiguous"),
        ({"group_list_type": 0}, r"group_list_type must be 1 \(counts\)"),
        ({"group_list": None}, "group_type 0 needs group_list"),
        ({"group_list": torch.tensor([1, 4])}, "cover at most the 4 rows of x"),
        ({"output_dtype": torch.int32}, "output_dtype must be bfloat16 or float16"),
        ({"output_dtype": None}, "output_dtype must be bfloat16 or float16"),
        ({"x": [x[:, :256]]}, "x with these int4 weights must have shape"),
        ({"x": [x[:, :264]], "weight": [words[:, :264].contiguous()]}, "K of int4 weights must be a multiple of 256"),
        ({"x": [torch.zeros(1, 18688, dtype=torch.int8)], "weight": [long]}, "at most 18432, got 18688"),
        ({"weight": [torch.zeros(1025, 1, 1, dtype=torch.int32)]}, "at most 1024 groups"),
        ({"scale": [scale.float()]}, "scale of int4 weights must be int64"),
        ({"scale": [scale[:, 0]]}, "scale of int4 weights must have 3 dimension"),
        ({"scale": [scale[:, :, :8]]}, "scale of int4 weights must have shape"),
        ({"scale": [scale[:, :1].repeat(1, 3, 1)]}, "the scale's groups must divide K = 512"),
        ({"bias": [bias.half()]}, "bias of int4 weights must be float32"),
        ({"bias": [bias[:, :8]]}, "bias of int4 weights must have shape"),
        ({"per_token_scale": [torch.rand(4).half()]}, "per_token_scale must be float32"),
        ({"per_token_scale": [torch.rand(3)]}, "per_token_scale .one per row. must have shape"),
    ):
        with refuses("npu_grouped_matmul", message):
            grouped_matmul(**legal | changes)
    for unsupported, message in (
        ({"offset": [torch.zeros(2, 1, 16)]}, "offset"),
        ({"antiquant_scale": [torch.zeros(2, 16)]}, "antiquant_scale"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            grouped_matmul(**legal | unsupported)


def int4_weights(experts: int, transposed: bool) -> tuple[np.ndarray, torch.Tensor]:
    """Integers ``[E, 64, 16]`` of -8 to 7, and the same as an operator takes them."""
    weight = np.random.default_rng(experts).integers(-8, 8, (experts, 64, 16))
    if transposed:
        return weight, packed_by_hand(weight.swapaxes(1, 2)).transpose(1, 2)
    return weight, packed_by_hand(weight)


def dequantised_by_hand(weight: np.ndarray, scale: torch.Tensor, offset: torch.Tensor) -> np.ndarray:
    """``[K, N]`` numbers of the scale's dtype from one expert's integers, with scales and offsets ``[G, N]``."""
    size = weight.shape[0] // scale.shape[0]
    exact = [(weight[k] + f64(offset)[k // size]) * f64(scale)[k // size] for k in range(weight.shape[0])]
    return f64(torch.from_numpy(np.stack(exact)).to(scale.dtype))


halves = st.sampled_from([torch.bfloat16, torch.float16])


@given(
    counts=counts_lists,
    spare=st.integers(0, 2),
    groups=st.sampled_from([0, 1, 2, 4]),
    dtype=halves,
    kind=st.sampled_from([0, 1]),
    transposed=st.booleans(),
    biased=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_grouped_matmul_of_float_rows_with_int4_weights(
    counts: list[int], spare: int, groups: int, dtype: torch.dtype, kind: int, transposed: bool, biased: bool
) -> None:
    torch.manual_seed(sum(counts) + groups)
    experts, rows = len(counts), sum(counts) + spare
    weight, words = int4_weights(experts, transposed)
    scale = (torch.rand(experts, max(groups, 1), 16) / 8).to(dtype)
    offset = torch.zeros_like(scale) if groups else torch.randint(-3, 4, scale.shape).to(dtype)
    x, bias = torch.randn(rows, 64).to(dtype), torch.randn(experts, 16)
    bias = bias.half() if dtype == torch.float16 else bias
    (out,) = grouped_matmul(
        [x],
        [words],
        bias=[bias] if biased else None,
        antiquant_scale=[scale if groups else scale[:, 0]],
        antiquant_offset=[offset if groups else offset[:, 0]],
        group_list=torch.tensor(counts if kind else np.cumsum(counts).tolist()),
        group_list_type=kind,
        group_type=0,
        split_item=2,
    )
    assert out.dtype == dtype
    assert is_poison(out[sum(counts) :])
    for e, first, end in bounds(counts):
        want = f64(x)[first:end] @ dequantised_by_hand(weight[e], scale[e], offset[e])
        assert_close(out[first:end], want + (f64(bias)[e] if biased else 0), scale=8)


def test_grouped_matmul_of_float_rows_with_int4_weights_limits() -> None:
    words = int4_weights(2, False)[1]
    scale = torch.ones(2, 4, 16).bfloat16()
    legal: dict[str, Any] = {
        "x": [torch.zeros(3, 64).bfloat16()],
        "weight": [words],
        "antiquant_scale": [scale],
        "antiquant_offset": [torch.zeros_like(scale)],
        "group_list": torch.tensor([1, 2]),
        "group_list_type": 1,
        "group_type": 0,
        "split_item": 2,
    }
    grouped_matmul(**legal)
    odd = torch.ones(2, 64, 16).bfloat16()
    for changes, message in (
        ({"x": [torch.zeros(3, 64)]}, "x with int4 weights must be float16 or bfloat16"),
        ({"x": [torch.zeros(64).bfloat16()]}, "x must have 2 dimension"),
        ({"x": [torch.zeros(3, 56).bfloat16()]}, "x with these int4 weights must have shape"),
        ({"weight": [words[0]]}, "an int4 weight must have 3 dimension"),
        ({"weight": [words] * 2}, "weight must hold one tensor with int4 weights"),
        ({"weight": [words[:, :, :1]]}, "an int4 weight must be contiguous or transposed"),
        ({"weight": [words[:, ::2].transpose(1, 2)]}, "an int4 weight must be contiguous or transposed"),
        ({"weight": [torch.zeros(2, 3, 8, 64, dtype=torch.int32)[:, 0].mT]}, "a transposed int4 weight must be whole"),
        ({"weight": [torch.zeros(1025, 64, 2, dtype=torch.int32)]}, "at most 1024 groups"),
        ({"weight": [torch.zeros(2, 1, 8192, dtype=torch.int32)]}, "last dimension of an int4 weight must be at most"),
        ({"antiquant_scale": None}, "int4 weights with float inputs need antiquant_scale"),
        ({"antiquant_offset": None}, "int4 weights with float inputs need antiquant_offset"),
        ({"antiquant_scale": [scale.half()]}, "antiquant_scale must be bfloat16"),
        ({"antiquant_scale": [scale[0, 0]]}, "antiquant_scale must have 2 or 3 dimension"),
        ({"antiquant_scale": [scale[:1]], "antiquant_offset": [scale[:1]]}, "antiquant_scale must have shape"),
        ({"antiquant_offset": [scale.half()]}, "antiquant_offset must be bfloat16"),
        ({"antiquant_offset": [scale[:, 0]]}, "antiquant_offset .as antiquant_scale. must have shape"),
        ({"antiquant_offset": [scale]}, "antiquant_offset must be zero with groups"),
        ({"antiquant_scale": [scale[:, :3]], "antiquant_offset": [0 * scale[:, :3]]}, "must divide K = 64"),
        (
            {"weight": [int4_weights(2, True)[1]], "antiquant_scale": [odd], "antiquant_offset": [0 * odd]},
            "groups of a transposed int4 weight must have an even size, got 1",
        ),
        ({"output_dtype": torch.float16}, "output_dtype must be None or torch.bfloat16"),
        ({"group_list_type": 2}, "group_list_type must be 0 or 1 with int4 weights"),
        ({"group_list": None}, "group_type 0 needs group_list"),
        ({"bias": [torch.zeros(2, 16).bfloat16()]}, "bias of torch.bfloat16 inputs must be float32"),
        ({"bias": [torch.zeros(16)]}, "bias must have shape"),
        ({"per_token_scale": [torch.zeros(3)]}, "float inputs take no scale and no per_token_scale"),
        ({"act_type": 5}, "int4 weights need group_type 0"),
    ):
        with refuses("npu_grouped_matmul", message):
            grouped_matmul(**legal | changes)


@given(
    rows=st.integers(1, 3),
    size=st.sampled_from([0, 32]),
    dtype=halves,
    transposed=st.booleans(),
    shifted=st.booleans(),
    biased=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_weight_quant_batchmatmul(
    rows: int, size: int, dtype: torch.dtype, transposed: bool, shifted: bool, biased: bool
) -> None:
    torch.manual_seed(rows)
    weight, words = int4_weights(1, transposed)
    scale = (torch.rand(2 if size else 1, 16) / 8).to(dtype)
    offset = torch.randint(-3, 4, scale.shape).to(dtype) if shifted else torch.zeros_like(scale)
    x, bias = torch.randn(rows, 64).to(dtype), torch.randn(16)
    bias = bias.half() if dtype == torch.float16 else bias
    out = weight_quant_batchmatmul(
        x,
        words[0],
        scale,
        offset if shifted else None,
        bias=bias if biased else None,
        antiquant_group_size=size,
    )
    assert out.dtype == dtype
    want = f64(x) @ dequantised_by_hand(weight[0], scale, offset) + (f64(bias) if biased else 0)
    assert_close(out, want, scale=8)


def test_weight_quant_batchmatmul_limits() -> None:
    words = int4_weights(1, False)[1][0]
    scale = torch.ones(2, 16).half()
    legal: dict[str, Any] = {
        "x": torch.zeros(3, 64).half(),
        "weight": words,
        "antiquant_scale": scale,
        "antiquant_group_size": 32,
    }
    weight_quant_batchmatmul(**legal)
    for changes, message in (
        ({"x": torch.zeros(3, 64)}, "x must be float16 or bfloat16"),
        ({"x": torch.zeros(64).half()}, "x must have 2 dimension"),
        ({"x": torch.zeros(0, 64).half()}, "x and weight must not be empty"),
        ({"x": torch.zeros(3, 56).half()}, "x with this weight must have shape"),
        ({"weight": words.view(2, 32, 2)}, "weight must have 2 dimension"),
        ({"weight": words.half()}, "an int4 weight must be int32"),
        ({"inner_precise": 1}, "inner_precise must be 0"),
        ({"x": torch.zeros(1, 1).half(), "weight": torch.zeros(1, 8192, dtype=torch.int32)}, "must be at most 65535"),
        ({"antiquant_scale": scale.bfloat16()}, "antiquant_scale must be float16"),
        ({"antiquant_group_size": 0}, "antiquant_scale must have N = 16 elements"),
        ({"antiquant_group_size": 16}, "antiquant_group_size must be 32 to K - 1 = 63"),
        ({"antiquant_group_size": 64}, "antiquant_group_size must be 32 to K - 1 = 63"),
        ({"antiquant_scale": scale[:1]}, "antiquant_scale with groups must have shape"),
        ({"antiquant_offset": scale.bfloat16()}, "antiquant_offset must be float16"),
        ({"antiquant_offset": scale[:1]}, "antiquant_offset .as antiquant_scale. must have shape"),
        ({"bias": torch.zeros(16)}, "bias of torch.float16 inputs must be float16"),
        ({"bias": torch.zeros(8).half()}, "bias must have N = 16 elements"),
    ):
        with refuses("npu_weight_quant_batchmatmul", message):
            weight_quant_batchmatmul(**legal | changes)
    wide = {"x": torch.zeros(3, 72).half(), "weight": torch.zeros(72, 2, dtype=torch.int32)}
    for unsupported, message in (
        ({"weight": int8(64, 16)}, "int8 weights"),
        ({"quant_scale": torch.ones(16)}, "argument quant_scale"),
        (wide, "a last group that is not full"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            weight_quant_batchmatmul(**legal | unsupported)


@given(
    rows=st.integers(1, 4),
    width=st.integers(1, 20),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    smooth=st.sampled_from([None, "one", "groups"]),
)
@settings(max_examples=40, deadline=None)
def test_dynamic_quant(rows: int, width: int, dtype: torch.dtype, smooth: str | None) -> None:
    torch.manual_seed(width)
    x = torch.randn(rows, 2, width).to(dtype)
    x[0, 0] = 0
    factors = index = None
    expected = f64(x).reshape(-1, width)
    if smooth == "one":
        factors = torch.rand(width).to(dtype)
        expected = expected * f64(factors)
    elif smooth == "groups":
        factors = torch.rand(3, width).to(dtype)
        index = torch.tensor([1, 1, 2 * rows], dtype=torch.int32)
        expected = expected * f64(factors)[[0] + [2] * (2 * rows - 1)]
    y, scale = dynamic_quant(x, smooth_scales=factors, group_index=index)
    assert scale.shape == (rows, 2)
    assert_quantised(y.flatten(0, 1), scale.flatten(), expected)


def test_dynamic_quant_limits() -> None:
    x = torch.zeros(3, 4).half()
    for arguments, options, message in (
        (x.float(), {}, "x must be float16 or bfloat16, got float32"),
        (x[0], {}, "at least 2 dimensions"),
        (x, {"smooth_scales": torch.zeros(4)}, "smooth_scales must have the dtype of x"),
        (x, {"smooth_scales": torch.zeros(3).half()}, "smooth_scales must have shape"),
        (x, {"group_index": torch.tensor([3]).int()}, "group_index needs smooth_scales"),
        (x, {"smooth_scales": x[:1], "group_index": torch.tensor([3])}, "group_index must be int32"),
        (x, {"smooth_scales": x[:1], "group_index": torch.tensor([2]).int()}, "end with 3 rows"),
    ):
        with refuses("npu_dynamic_quant", message):
            dynamic_quant(arguments, **options)
    with pytest.raises(NotImplementedError, match="perchannel"):
        dynamic_quant(x, quant_mode="perchannel")


@given(
    m=st.integers(1, 4),
    batch=st.booleans(),
    output=st.sampled_from([None, torch.float16, torch.bfloat16, torch.int32]),
    single=st.booleans(),
    per_token=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_quant_matmul(
    m: int, batch: bool, output: torch.dtype | None, single: bool, per_token: bool, bias: bool
) -> None:
    torch.manual_seed(m)
    x1, x2 = int8(*((2, m, 16) if batch else (m, 16))), int8(16, 6)
    scale = torch.rand(1 if single else 6).to(torch.bfloat16 if output == torch.bfloat16 else torch.float32) / 100
    rows = torch.rand(m) if per_token and output in (torch.float16, torch.bfloat16) else None
    int_bias = torch.randint(-9, 9, (6,), dtype=torch.int32) if bias else None
    offset = torch.rand(6) if output is None else None
    out = quant_matmul(x1, x2, scale, offset=offset, pertoken_scale=rows, bias=int_bias, output_dtype=output)
    want = f64(x1) @ f64(x2) + (f64(int_bias) if int_bias is not None else 0)
    if output == torch.int32:
        np.testing.assert_array_equal(f64(out), want)
        return
    want = want * f64(scale) * (f64(rows)[:, None] if rows is not None else 1)
    if output is None:
        assert out.dtype == torch.int8
        np.testing.assert_allclose(f64(out), np.clip(want + f64(offset), -128, 127), atol=0.501)
        return
    assert out.dtype == output
    assert_close(out, want, scale=2)


@given(values=st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=6), marked=st.booleans())
@settings(max_examples=40, deadline=None)
def test_an_int64_scale_counts_with_the_upper_19_bits_of_its_float32(values: list[float], marked: bool) -> None:
    exact = np.array(values, dtype=np.float32)
    kept = (exact.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    bits = torch.from_numpy(exact.view(np.int32).astype(np.int64)) | ((1 << 46) if marked else 0)
    x1, x2 = torch.ones(2, 1, dtype=torch.int8), torch.ones(1, len(values), dtype=torch.int8)
    bias = torch.full((len(values),), 2, dtype=torch.int32)
    out = quant_matmul(x1, x2, bits, bias=bias, output_dtype=torch.float16)
    want = np.broadcast_to(np.minimum(3 * kept, 1e6), (2, len(values))).astype(np.float16)
    np.testing.assert_array_equal(out.numpy(), want)


@given(
    rows=st.integers(0, 3),
    width=st.integers(1, 6),
    division=st.booleans(),
    one=st.booleans(),
    last=st.booleans(),
    offset=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_quantize(rows: int, width: int, division: bool, one: bool, last: bool, offset: bool) -> None:
    torch.manual_seed(width)
    x = torch.randn(rows, 2, width) * 90
    size = 1 if one else width if last else 2
    scale = torch.rand(size) + 0.5
    zeros = torch.randint(-100, 100, (size,)) if offset else None
    typed = None if zeros is None else zeros.to(torch.int32 if division else torch.float32)
    y = quantize(x, scale, typed, 12, axis=-1 if last else -2, div_mode=division)
    factor = f64(scale) if last or one else f64(scale)[:, None]
    added = 0.0 if zeros is None else (f64(zeros) if last or one else f64(zeros)[:, None])
    exact = (f64(x) / factor if division else f64(x) * factor) + added
    assert y.dtype == torch.int8
    assert y.shape == x.shape
    np.testing.assert_allclose(f64(y), np.clip(exact, -128, 127), atol=0.5001)


def test_quantize_rounds_to_even_and_saturates_both_ways() -> None:
    x = torch.tensor([[0.5, 1.5, -0.5, -2.5, 126.4, 126.5, 127.6, -128.5, -129.0, 1e9, -1e9]])
    y = quantize(x, torch.ones(1), torch.zeros(1, dtype=torch.int32), 12, axis=-1)
    assert y.tolist() == [[0, 2, 0, -2, 126, 126, 127, -128, -128, 127, -128]]
    shifted = quantize(x, torch.ones(1), torch.tensor([-5], dtype=torch.int8), 12, axis=-1)
    assert shifted.tolist() == [[-4, -4, -6, -8, 121, 122, 123, -128, -128, 127, -128]]


def test_quant_matmul_limits() -> None:
    def call(**changes: Any) -> None:
        arguments = {"x1": int8(3, 8), "x2": int8(8, 4), "scale": torch.ones(4), "output_dtype": torch.float16}
        quant_matmul(**{**arguments, **changes})

    call()
    for changes, message in (
        ({"x1": torch.zeros(3, 8)}, "x1 must be int8"),
        ({"x2": int8(7, 4)}, "x2 must have K = 8 rows"),
        ({"x1": int8(1, 65536), "x2": int8(65536, 1)}, "last dimension of x1 must be at most 65535"),
        ({"scale": torch.ones(3)}, "scale must have 1 or N = 4 elements"),
        ({"scale": torch.ones(4).bfloat16()}, "scale for float16 output must be float32"),
        ({"pertoken_scale": torch.ones(2)}, "pertoken_scale must have shape"),
        ({"pertoken_scale": torch.ones(3), "output_dtype": None}, "int8 output takes no pertoken_scale"),
        ({"bias": torch.zeros(4).half()}, "bias for float16 output must be int32"),
        ({"offset": torch.zeros(4)}, "offset needs int8 output"),
        ({"output_dtype": torch.float32}, "output_dtype must be int8, float16, bfloat16 or int32, got float32"),
    ):
        with refuses("npu_quant_matmul", message):
            call(**changes)


@given(
    rows=st.integers(1, 5),
    half=st.integers(1, 8),
    left=st.booleans(),
    kind=st.sampled_from([None, 0, 1]),
    smooth=st.sampled_from([None, "vector", "matrix"]),
    dtype=floats,
)
@settings(max_examples=40, deadline=None)
def test_swiglu_quant(
    rows: int, half: int, left: bool, kind: int | None, smooth: str | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(half)
    x = torch.randn(rows, 2 * half).to(dtype)
    counts = [rows - 1] if kind is not None else [rows]
    index = None if kind is None else torch.tensor(counts, dtype=torch.int32)
    factors = None if smooth is None else torch.rand((1,) if smooth == "vector" else (1, half)) + 0.5
    y, scale = swiglu_quant(
        x, smooth_scales=factors, group_index=index, group_list_type=kind or 0, activate_left=left, quant_mode=1
    )
    first, second = np.split(f64(x), 2, axis=1)
    want = silu(first) * second if left else silu(second) * first
    want = want * (f64(factors) if factors is not None else 1)
    assert_quantised(y[: counts[0]], scale[: counts[0]], want[: counts[0]])
    assert is_poison(y[counts[0] :])
    assert is_poison(scale[counts[0] :])


def test_swiglu_quant_limits() -> None:
    x = torch.zeros(2, 8)
    with pytest.raises(NotImplementedError, match="static quantisation"):
        swiglu_quant(x)
    for tensor, options, message in (
        (torch.zeros(1, 8194), {}, "at most 8192, got 8194"),
        (torch.zeros(1, 7), {}, "must be even"),
        (x, {"group_index": torch.tensor([1])}, "group_index must be int32"),
        (x, {"group_index": torch.tensor([3]).int()}, "cover at most 2 rows"),
        (x, {"smooth_scales": torch.zeros(1, 3)}, "smooth_scales must have shape"),
    ):
        with refuses("npu_swiglu_quant", message):
            swiglu_quant(tensor, quant_mode=1, **options)


@given(
    counts=counts_lists,
    spare=st.integers(0, 2),
    mode=st.sampled_from([0, 1, 2]),
    left=st.booleans(),
    ints=st.booleans(),
    column=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_dequant_swiglu_quant(counts: list[int], spare: int, mode: int, left: bool, ints: bool, column: bool) -> None:
    torch.manual_seed(sum(counts))
    total, groups, width = sum(counts), len(counts), 64
    rows = total + spare
    smooth = torch.rand(groups, width) + 0.5
    of_row = np.repeat(np.arange(groups), counts)
    if ints:
        x = torch.randint(-9000, 9000, (rows, 2 * width), dtype=torch.int32)
        scale, row_scale = torch.rand(groups, 2 * width) / 1000, torch.rand(rows)
        options = {"weight_scale": scale, "activation_scale": row_scale.unsqueeze(1) if column else row_scale}
        values = f64(x)[:total] * f64(scale)[of_row] * f64(row_scale)[:total, None]
    else:
        x, options = torch.randn(rows, 2 * width).bfloat16() * 4, {}
        values = f64(x)[:total]
    y, scales = dequant_swiglu_quant(
        x,
        quant_scale=smooth,
        group_index=torch.tensor(counts),
        activate_left=left,
        quant_mode=1,
        swiglu_mode=mode,
        **options,
    )
    if mode == 1:
        gate, up = values[:, ::2], values[:, 1::2]
    else:
        first, second = np.split(values, 2, axis=1)
        gate, up = (first, second) if left else (second, first)
    if mode:
        gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
        want = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    else:
        want = silu(gate) * up
    assert_quantised(y[:total], scales[:total], want * f64(smooth)[of_row])
    assert is_poison(y[total:])
    assert is_poison(scales[total:])


def test_dequant_swiglu_quant_limits() -> None:
    def call(**changes: Any) -> None:
        arguments = {
            "x": torch.zeros(3, 128, dtype=torch.int32),
            "weight_scale": torch.ones(1, 128),
            "activation_scale": torch.ones(3),
            "group_index": torch.tensor([3]),
            "quant_mode": 1,
        }
        dequant_swiglu_quant(**{**arguments, **changes})

    call()
    for changes, message in (
        ({"quant_mode": 0}, "quant_mode must be 1 with group_index"),
        ({"group_index": torch.tensor([4])}, "sum to at most the 3 rows of x, got 4"),
        ({"group_index": torch.tensor([3]).int()}, "group_index must be int64"),
        ({"weight_scale": None}, "int32 x needs weight_scale"),
        ({"weight_scale": torch.ones(1, 128).half()}, "weight_scale must be float32"),
        ({"x": torch.zeros(3, 128).bfloat16()}, "bfloat16 x takes no weight_scale"),
        ({"x": torch.zeros(3, 128)}, "x must be int32 or bfloat16"),
        ({"x": torch.zeros(3, 96, dtype=torch.int32), "weight_scale": torch.ones(1, 96)}, "multiple of 64 .*got 48"),
        ({"x": torch.zeros(1, 2 * 10560, dtype=torch.int32)}, "at most 10496"),
        ({"bias": torch.zeros(1)}, "bias must be None with group_index"),
    ):
        with refuses("npu_dequant_swiglu_quant", message):
            call(**changes)


@given(counts=counts_lists, spare=st.integers(0, 2), raw=st.booleans(), second=st.sampled_from([None, 0, 1]))
@settings(max_examples=40, deadline=None)
def test_grouped_matmul_swiglu_quant(counts: list[int], spare: int, raw: bool, second: int | None) -> None:
    torch.manual_seed(sum(counts))
    experts, total, inner, width = len(counts), sum(counts), 32, 64
    x, weight = int8(total + spare, inner), int8(experts, inner, width)
    scale, row_scale = torch.rand(experts, width) / 1000, torch.rand(total + spare)
    stored = weight
    if raw:  # [E, N/32, K/16, 16, 32]
        stored = torch.empty(experts, width // 32, inner // 16, 16, 32, dtype=torch.int8)
        for n in range(width):
            for k in range(inner):
                stored[:, n // 32, k // 16, k % 16, n % 32] = weight[:, k, n]
    ends = torch.tensor(np.cumsum(counts).tolist())
    if second is None:
        y, scales, reserved = grouped_matmul_swiglu_quant(x, stored, ends, scale, row_scale)
        assert reserved.shape == ()
    else:
        groups = torch.tensor(counts) if second else ends
        y, scales = grouped_matmul_swiglu_quant_v2(x, [stored], [scale], row_scale, groups, group_list_type=second)
    for e, first, end in bounds(counts):
        values = f64(x)[first:end] @ f64(weight)[e] * f64(scale)[e] * f64(row_scale)[first:end, None]
        gate, up = np.split(values, 2, axis=1)
        assert_quantised(y[first:end], scales[first:end], silu(gate) * up)
    assert is_poison(y[total:])
    assert is_poison(scales[total:])


def test_grouped_matmul_swiglu_quant_limits() -> None:
    def call(**changes: Any) -> None:
        arguments = {
            "x": int8(3, 32),
            "weight": int8(2, 32, 64),
            "group_list": torch.tensor([1, 3]),
            "weight_scale": torch.ones(2, 64),
            "x_scale": torch.ones(3),
        }
        grouped_matmul_swiglu_quant(**{**arguments, **changes})

    call()
    op = "npu_grouped_matmul_swiglu_quant"
    for changes, message in (
        ({"group_list": torch.tensor([3, 1])}, "must not fall"),
        ({"group_list": torch.tensor([1, 4])}, "cover at most 3 rows"),
        ({"group_list": torch.tensor([1, 3]).int()}, "group_list must be int64"),
        ({"bias": torch.zeros(1)}, "bias and offset must be None"),
        ({"x": torch.zeros(3, 32)}, "x must be int8"),
        ({"weight_scale": torch.ones(2, 32)}, "weight_scale must have shape"),
        ({"x_scale": torch.ones(2)}, "x_scale must have shape"),
    ):
        with refuses(op, message):
            call(**changes)
    arguments = (int8(3, 32), [int8(2, 32, 64)], [torch.ones(2, 64)], torch.ones(3), torch.tensor([1, 3]))
    for options, message in (
        ({"smooth_scale": torch.ones(2)}, "must be None for W8A8"),
        ({"dequant_mode": 1}, "dequant_mode must be 0"),
        ({"quant_dtype": 2}, "quant_dtype must be left"),
        ({"group_list_type": 2}, "group_list_type must be"),
    ):
        with refuses(op + "_v2", message):
            grouped_matmul_swiglu_quant_v2(*arguments, **options)
    with refuses(op + "_v2", "weight must hold one tensor, got 2"):
        grouped_matmul_swiglu_quant_v2(arguments[0], arguments[1] * 2, *arguments[2:])
