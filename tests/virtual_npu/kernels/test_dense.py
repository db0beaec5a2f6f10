# SPDX-License-Identifier: Apache-2.0
"""Norms, rotary embeddings, SwiGLU and cache writes: values against element-wise formulas, and every documented limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ascend_patch.virtual_npu.kernels.activation import clipped_swiglu, swiglu
from vllm_ascend_patch.virtual_npu.kernels.kv_cache import reshape_and_cache, scatter_nd_update_, scatter_pa_kv_cache
from vllm_ascend_patch.virtual_npu.kernels.norm import add_rms_norm, rms_norm
from vllm_ascend_patch.virtual_npu.kernels.rope import apply_rotary_pos_emb, mrope, rotary_mul

from .reference import assert_close, f64, is_poison, silu

floats = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def refuses(message: str) -> Any:
    return pytest.raises(RuntimeError, match=message)


@given(rows=st.integers(0, 5), width=st.integers(1, 40), dtype=floats, epsilon=st.sampled_from([1e-6, 1e-3]))
@settings(max_examples=30, deadline=None)
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, epsilon: float) -> None:
    torch.manual_seed(rows * 41 + width)
    x, other, gamma = (torch.randn(*shape).to(dtype) for shape in ((rows, 2, width), (rows, 2, width), (width,)))
    y, rstd = rms_norm(x, gamma, epsilon)
    root = 1 / np.sqrt((f64(x) ** 2).mean(-1, keepdims=True) + epsilon)
    assert rstd.dtype == torch.float32
    np.testing.assert_allclose(f64(rstd), root, rtol=1e-5)
    assert_close(y, f64(x) * root * f64(gamma), scale=4)

    y, rstd, total = add_rms_norm(x, other, gamma, epsilon)
    added = f64(x) + f64(other)
    root = 1 / np.sqrt((added**2).mean(-1, keepdims=True) + epsilon)
    assert_close(total, added, scale=4)
    assert_close(y, added * root * f64(gamma), scale=4)


def test_rms_norm_over_two_dimensions() -> None:
    x, gamma = torch.randn(3, 4, 5), torch.randn(4, 5)
    y, rstd = rms_norm(x, gamma)
    assert rstd.shape == (3, 1, 1)
    assert_close(y[1], f64(x[1]) / np.sqrt((f64(x[1]) ** 2).mean() + 1e-6) * f64(gamma))


def test_rms_norm_limits() -> None:
    x = torch.zeros(2, 8)
    with refuses("npu_rms_norm: x must be float16 or bfloat16 or float32, got float64"):
        rms_norm(x.double(), torch.zeros(8).double())
    with refuses("npu_rms_norm: gamma must have the dtype of x"):
        rms_norm(x, torch.zeros(8).half())
    with refuses(r"npu_rms_norm: gamma .* must have shape \[8\], got \[7\]"):
        rms_norm(x, torch.zeros(7))
    with refuses("npu_add_rms_norm: x2 .* must have shape"):
        add_rms_norm(x, torch.zeros(2, 7), torch.zeros(8))


def turned(x: np.ndarray, mode: str) -> np.ndarray:
    """A quarter turn of every pair of the last dimension, element by element."""
    out, half = np.empty_like(x), x.shape[-1] // 2
    for i in range(half):
        a, b = (i, i + half) if mode == "half" else (2 * i, 2 * i + 1)
        out[..., a], out[..., b] = -x[..., b], x[..., a]
    return out


@given(mode=st.sampled_from(["half", "interleave"]), dtype=floats, half=st.integers(1, 40), batch=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_rotary_mul(mode: str, dtype: torch.dtype, half: int, batch: int) -> None:
    torch.manual_seed(half)
    x = torch.randn(batch, 5, 3, 2 * half).to(dtype)
    cos, sin = (torch.rand(1, 5, 1, 2 * half).to(dtype) for _ in "cs")
    assert_close(rotary_mul(x, cos, sin, mode), f64(cos) * f64(x) + f64(sin) * turned(f64(x), mode), scale=4)


def test_rotary_mul_limits() -> None:
    x, factor = torch.zeros(2, 3, 4, 8), torch.zeros(1, 3, 1, 8)
    for broken, message in (
        ((x[0], factor, factor), "input must have 4 dimension"),
        ((x, factor[..., :4], factor[..., :4]), "must broadcast .* with the full head size 8"),
        ((x, factor.half(), factor), "r1 must have the dtype of the input"),
        ((torch.zeros(1, 1, 1, 896), torch.zeros(1, 1, 1, 896), torch.zeros(1, 1, 1, 896)), "below 896, got 896"),
        ((x, factor, factor, "quarter"), "rotary_mode must be 'half' or 'interleave'"),
        ((x, torch.zeros(2, 3, 1, 8), torch.zeros(2, 3, 1, 8), "interleave"), "may vary only over S"),
    ):
        with refuses(f"npu_rotary_mul: .*{message}"):
            rotary_mul(*broken)


@given(
    tokens=st.integers(0, 6),
    rotary=st.sampled_from([32, 64]),
    mode=st.sampled_from(["half", "interleave"]),
    dtype=floats,
    multimodal=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_mrope(tokens: int, rotary: int, mode: str, dtype: torch.dtype, multimodal: bool) -> None:
    torch.manual_seed(tokens)
    size, half = 64, rotary // 2
    query, key = torch.randn(tokens, 4 * size).to(dtype), torch.randn(tokens, size).to(dtype)
    cache = torch.rand(20, rotary).to(dtype)
    section = [half // 4, half // 2, half // 4]
    positions = torch.randint(20, (3, tokens) if multimodal else (tokens,))
    outputs = mrope(
        positions, query, key, cache, size, rotary_mode=mode, mrope_section=section if multimodal else [0, 0, 0]
    )
    row_of = np.repeat([0, 1, 2], section) if multimodal else None
    for flat, result in zip((query, key), outputs, strict=True):
        expected = f64(flat).copy().reshape(tokens, flat.shape[1] // size, size)
        for t in range(tokens):
            for i in range(half):
                at = int(positions[row_of[i], t] if row_of is not None else positions[t])
                cos, sin = (float(cache[at, i + shift]) for shift in (0, half))
                a, b = (i, i + half) if mode == "half" else (2 * i, 2 * i + 1)
                first, second = expected[t, :, a].copy(), expected[t, :, b].copy()
                expected[t, :, a], expected[t, :, b] = first * cos - second * sin, second * cos + first * sin
        assert_close(result, expected.reshape(flat.shape), scale=4)


def test_mrope_limits() -> None:
    def call(**changes: Any) -> None:
        arguments = {
            "positions": torch.zeros(2, dtype=torch.int64),
            "query": torch.zeros(2, 128),
            "key": torch.zeros(2, 64),
            "cos_sin_cache": torch.zeros(4, 64),
            "head_size": 64,
        }
        mrope(**{**arguments, **changes})

    call()
    for changes, message in (
        ({"positions": torch.tensor([0, 4])}, r"positions must lie in \[0, 4\)"),
        ({"positions": torch.zeros(3, 2, dtype=torch.int64)}, "positions must have 1 dimension"),
        ({"key": torch.zeros(2, 65)}, "key must hold whole heads of 64"),
        ({"cos_sin_cache": torch.zeros(4, 24)}, "multiple of 16 for this dtype, got 24"),
        ({"cos_sin_cache": torch.zeros(4, 80)}, r"rotary_dim must be in \(0, head_size=64\]"),
        ({"mrope_section": [1, 1, 1], "positions": torch.zeros(3, 2, dtype=torch.int64)}, "sum to rotary_dim / 2 = 32"),
        ({"query": torch.zeros(2, 128).half()}, "key must have the dtype of query"),
    ):
        with refuses(f"npu_mrope: .*{message}"):
            call(**changes)


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_apply_rotary_pos_emb_works_in_place(layout: str) -> None:
    lead = (2, 3) if layout == "BSND" else (6,)
    query, key = torch.randn(*lead, 4, 64).half(), torch.randn(*lead, 2, 64).half()
    cos, sin = (torch.rand(*lead, 1, 64).half() for _ in "cs")
    expected = [f64(t) * f64(cos) + turned(f64(t), "half") * f64(sin) for t in (query, key)]
    results = apply_rotary_pos_emb(query, key, cos, sin, layout)
    assert results[0] is query
    assert results[1] is key
    for result, want in zip(results, expected, strict=True):
        assert_close(result, want, scale=4)


def test_apply_rotary_pos_emb_limits() -> None:
    query, key, cos = torch.zeros(2, 3, 4, 64), torch.zeros(2, 3, 2, 64), torch.zeros(2, 3, 1, 64)
    for arguments, message in (
        ((query, key, cos, cos, "BSH"), "layout must be 'BSND' or 'TND'"),
        ((query, key, cos, cos, "BSND", "interleave"), "rotary_mode must be 'half'"),
        ((query[..., :32], key[..., :32], cos[..., :32], cos[..., :32]), "head size must be 64 or 128, got 32"),
        ((query, key, cos.half(), cos), "cos must have the dtype of query"),
        ((query, key, cos[:1], cos), r"cos must have shape \[2, 3, 1, 64\]"),
        ((query[:0], key[:0], cos[:0], cos[:0]), "query must not be empty"),
    ):
        with refuses(f"npu_apply_rotary_pos_emb: .*{message}"):
            apply_rotary_pos_emb(*arguments)


@given(rows=st.integers(0, 4), half=st.integers(0, 30), dim=st.sampled_from([-1, 0, 1]), dtype=floats)
@settings(max_examples=30, deadline=None)
def test_swiglu(rows: int, half: int, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn((rows, 2 * half) if dim else (2 * half, rows)).to(dtype)
    first, second = np.split(f64(x), 2, axis=dim)
    assert_close(swiglu(x, dim), silu(first) * second, scale=4)


def test_swiglu_limits() -> None:
    with refuses("npu_swiglu: size along dim -1 must be even, got 3"):
        swiglu(torch.zeros(2, 3))
    with refuses("npu_swiglu: x must be float16"):
        swiglu(torch.zeros(2, 4, dtype=torch.int8))


@given(
    rows=st.integers(0, 4),
    half=st.integers(0, 9),
    dim=st.sampled_from([-1, 0, 1]),
    interleaved=st.booleans(),
    spare=st.sampled_from([None, 0, 2]),
    dtype=floats,
)
@settings(max_examples=40, deadline=None)
def test_clipped_swiglu(
    rows: int, half: int, dim: int, interleaved: bool, spare: int | None, dtype: torch.dtype
) -> None:
    x = (torch.randn((rows, 2 * half) if dim else (2 * half, rows)) * 3).to(dtype)
    before, width = (rows, 2 * half) if dim else (1, 2 * half * rows)
    written = before if spare is None else max(before - spare, 0)
    index = None if spare is None else torch.tensor([written, 0])
    y = clipped_swiglu(x, group_index=index, dim=dim, alpha=1.5, limit=2.0, bias=0.5, interleaved=interleaved)
    assert y.shape == ((rows, half) if dim else (half, rows))
    flat = f64(x).reshape(before, width)[:written]
    first, second = (flat[:, ::2], flat[:, 1::2]) if interleaved else np.split(flat, 2, axis=1)
    gate, up = np.minimum(first, 2.0), np.clip(second, -2.0, 2.0)
    y = y.reshape(before, width // 2)
    assert_close(y[:written], gate / (1 + np.exp(-1.5 * gate)) * (up + 0.5), scale=4)
    assert is_poison(y[written:])


def test_clipped_swiglu_limits() -> None:
    x = torch.zeros(2, 4)
    for tensor, options, message in (
        (torch.zeros(2, 3), {}, "size along dim -1 must be even, got 3"),
        (torch.zeros(4), {}, "x must have more than 1 dimension, got 1"),
        (x.to(torch.int8), {}, "x must be float16"),
        (torch.zeros(4, 2).t(), {}, "x must be contiguous"),
        (x, {"dim": 2}, r"dim must be in \[-2, 2\)"),
        (x, {"group_index": torch.tensor([1]).int()}, "group_index must be int64"),
        (x, {"group_index": torch.tensor([[1]])}, "group_index must have 1 dimension"),
        (x, {"group_index": torch.tensor([2, 1])}, "cover at most the 2 rows of x, got 3"),
    ):
        with refuses(f"npu_clipped_swiglu: .*{message}"):
            clipped_swiglu(tensor, **options)


cache_types = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.int8])


@given(tokens=st.integers(0, 6), heads=st.sampled_from([1, 2, 4]), dtype=cache_types, wide=st.booleans())
@settings(max_examples=30, deadline=None)
def test_scatter_into_both_cache_layouts(tokens: int, heads: int, dtype: torch.dtype, wide: bool) -> None:
    torch.manual_seed(tokens)
    sizes = (32, 64)
    key, value = (torch.randint(-99, 99, (tokens, heads, size)).to(dtype) for size in sizes)
    slots = torch.randperm(3 * 16)[:tokens].to(torch.int64 if wide else torch.int32)
    nd = [torch.full((3, 16, heads, size), 7).to(dtype) for size in sizes]
    scatter_pa_kv_cache(key, value, *nd, slots, cache_mode="Norm")
    width = 32 // key.element_size()
    nz = [torch.full((3, heads * size // width, 16, width), 7).to(dtype) for size in sizes]
    scatter_pa_kv_cache(key, value, *nz, slots, cache_mode="PA_NZ")
    atb = [torch.full((3, 16, heads, 32), 7).to(dtype) for _ in "kv"]
    if dtype not in (torch.float32,):
        reshape_and_cache(key, value[..., :32], *atb, slots.int())
    for rows, cache, pieces in zip((key, value), nd, nz, strict=True):
        expected = torch.full_like(cache, 7)
        for t, slot in enumerate(slots.tolist()):
            expected[slot // 16, slot % 16] = rows[t]
        assert torch.equal(cache, expected)
        for slot in range(48):
            assert torch.equal(pieces[slot // 16, :, slot % 16].reshape(-1), expected[slot // 16, slot % 16].flatten())
    if dtype not in (torch.float32,):
        assert torch.equal(atb[0], nd[0])


def test_torch_npu_2_7_tells_the_layout_by_the_shape() -> None:
    rows, slots = torch.ones(1, 2, 32), torch.tensor([17])
    for shape in ((2, 16, 2, 32), (2, 8, 16, 8)):
        cache = torch.zeros(shape)
        scatter_pa_kv_cache(rows, rows, cache, cache.clone(), slots)
        assert int(cache.sum()) == 64


def test_scatter_limits() -> None:
    def call(op: Any = scatter_pa_kv_cache, **changes: Any) -> None:
        arguments = {
            "key": torch.zeros(2, 2, 32),
            "value": torch.zeros(2, 2, 32),
            "key_cache": torch.zeros(3, 16, 2, 32),
            "value_cache": torch.zeros(3, 16, 2, 32),
            "slot_mapping": torch.tensor([0, 47], dtype=torch.int32),
            "cache_mode": "Norm",
        }
        op(**{**arguments, **changes})

    call()
    for changes, message in (
        ({"slot_mapping": torch.tensor([0, -1])}, r"must lie in \[0, 48\), got values from -1"),
        ({"slot_mapping": torch.tensor([0, 48])}, r"must lie in \[0, 48\), got values from 0 to 48"),
        ({"slot_mapping": torch.tensor([5, 5])}, "must not repeat, got 5 more than once"),
        ({"slot_mapping": torch.tensor([0.0, 1.0])}, "slot_mapping must be int32 or int64"),
        ({"slot_mapping": torch.tensor([0])}, r"slot_mapping .* must have shape \[2\]"),
        ({"cache_mode": "PA_NZ"}, "pass 'Norm' for an ND cache"),
        ({"cache_mode": "NHD"}, "cache_mode must be None, 'Norm' or 'PA_NZ'"),
        ({"value": torch.zeros(2, 2, 32).half()}, "value must have the dtype of key"),
        ({"key_cache": torch.zeros(3, 16, 2, 32).half()}, "key_cache must have the dtype of key"),
        ({"key_cache": torch.zeros(3, 2, 16, 32).transpose(1, 2)}, "key_cache must be contiguous"),
        ({"key": torch.zeros(2, 32, 2).transpose(1, 2)}, "key must be contiguous"),
        ({"value": torch.zeros(2, 1, 32)}, "value must have the tokens and heads of key"),
        ({"key_cache": torch.zeros(3, 16, 2, 64)}, "key_cache with cache_mode 'Norm' must have shape"),
    ):
        with refuses(f"npu_scatter_pa_kv_cache: .*{message}"):
            call(**changes)
    with refuses("_npu_reshape_and_cache: slot_indices must be int32, got int64"):
        half = torch.zeros(2, 2, 32).half()
        reshape_and_cache(half, half, *(torch.zeros(3, 16, 2, 32).half() for _ in "kv"), torch.tensor([0, 1]))


def test_scatter_nd_update() -> None:
    target = torch.zeros(4, 5, 2)
    result = scatter_nd_update_(target, torch.tensor([[[1, 2]], [[3, 4]]]), torch.tensor([[[1.0, 2]], [[3, 4]]]))
    assert result is target
    assert target[1, 2].tolist() == [1, 2]
    assert target[3, 4].tolist() == [3, 4]
    assert float(target.sum()) == 10
    with refuses(r"npu_scatter_nd_update_: indices of dimension 1 must lie in \[0, 5\)"):
        scatter_nd_update_(target, torch.tensor([[1, 5]]), torch.zeros(1, 2))
    with refuses(r"npu_scatter_nd_update_: updates must have shape \[1, 2\]"):
        scatter_nd_update_(target, torch.tensor([[1, 2]]), torch.zeros(1, 3))
