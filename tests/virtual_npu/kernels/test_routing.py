# SPDX-License-Identifier: Apache-2.0
"""Gating, local routing and replica choice: values against loops over tokens, unwritten rows, every documented limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ascend_patch.virtual_npu.kernels.expert_balance import moe_update_expert
from vllm_ascend_patch.virtual_npu.kernels.finalize_routing import moe_finalize_routing, moe_re_routing
from vllm_ascend_patch.virtual_npu.kernels.gating import (
    moe_gating_top_k,
    moe_gating_top_k_softmax,
    moe_gating_top_k_softmax_v2,
)
from vllm_ascend_patch.virtual_npu.kernels.init_routing import (
    moe_compute_expert_tokens,
    moe_init_routing,
    moe_init_routing_v2,
)
from vllm_ascend_patch.virtual_npu.kernels.permute import moe_token_permute, moe_token_unpermute

from .reference import assert_close, assert_quantised, f64, is_poison, softmax

floats = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def refuses(op: str, message: str) -> Any:
    return pytest.raises(RuntimeError, match=f"^{op}: .*{message}")


@given(
    tokens=st.integers(0, 5),
    groups=st.sampled_from([(1, 1), (4, 2), (4, 4), (2, 1)]),
    norm=st.sampled_from([0, 1]),
    mode=st.sampled_from([0, 1]),
    biased=st.booleans(),
    dtype=floats,
    k=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_gating_top_k(
    tokens: int, groups: tuple[int, int], norm: int, mode: int, biased: bool, dtype: torch.dtype, k: int
) -> None:
    torch.manual_seed(tokens + 10 * k)
    count, kept = groups
    experts, size = 16, 16 // count
    # Distinct logits: ties are not part of the question.
    x = (torch.rand(tokens, experts).argsort(1) / 8 - 1).to(dtype)
    bias = (torch.randperm(experts) / 32).to(dtype) if biased else None
    weights, ids, shown = moe_gating_top_k(
        x,
        k,
        bias=bias,
        k_group=kept,
        group_count=count,
        group_select_mode=mode,
        norm_type=norm,
        out_flag=True,
        routed_scaling_factor=1.5,
    )
    assert ids.dtype == torch.int32
    assert weights.dtype == dtype
    for t in range(tokens):
        row = f64(x)[t]
        base = 1 / (1 + np.exp(-row)) if norm else softmax(row)
        np.testing.assert_allclose(f64(shown)[t], base, rtol=1e-5)
        score = base + (f64(bias) if bias is not None else 0)
        of_group = [sorted(score[g * size : (g + 1) * size])[-1 - mode :] for g in range(count)]
        best = sorted(range(count), key=lambda g: -sum(of_group[g]))[:kept]
        allowed = [e for e in range(experts) if e // size in best]
        want = sorted(allowed, key=lambda e: -score[e])[:k]
        np.testing.assert_allclose(score[ids[t].long().numpy()], score[want], rtol=1e-6)
        chosen = base[ids[t].long().numpy()]
        chosen = chosen / (chosen.sum() + 1e-20) if norm else chosen
        assert_close(weights[t], chosen * 1.5)


def test_gating_top_k_limits() -> None:
    def call(x: torch.Tensor, k: int = 2, **changes: Any) -> None:
        moe_gating_top_k(x, k, **changes)

    x = torch.zeros(2, 16)
    assert is_poison(moe_gating_top_k(x, 2)[2])
    for arguments, message in (
        ({"x": torch.zeros(2, 3, 16)}, "x must have 2 dimension"),
        ({"x": torch.zeros(1, 2049)}, "at most 2048, got 2049"),
        ({"bias": torch.zeros(16).half()}, "bias must have the dtype of x"),
        ({"bias": torch.zeros(8)}, "bias must have shape"),
        ({"k": 9, "group_count": 2}, r"k must be in \[1, 8\]"),
        ({"group_count": 3}, "group_count must divide the 16 experts"),
        ({"group_count": 8}, "experts per group must be more than 2, got 2"),
        ({"group_count": 128, "x": torch.zeros(1, 384)}, "times group_count must be at most 2048, got 4096"),
        ({"group_count": 2, "k_group": 3}, "k_group must be in"),
        ({"renorm": 1}, "renorm must be 0"),
        ({"norm_type": 2}, "norm_type must be 0"),
    ):
        with refuses("npu_moe_gating_top_k", message):
            call(**{"x": x, **arguments})


@given(tokens=st.integers(0, 5), k=st.integers(1, 6), dtype=floats, three=st.booleans(), done=st.booleans())
@settings(max_examples=40, deadline=None)
def test_gating_softmax(tokens: int, k: int, dtype: torch.dtype, three: bool, done: bool) -> None:
    torch.manual_seed(k)
    shape = (tokens, 2, 8) if three else (tokens, 8)
    x = torch.rand(shape).argsort(-1).to(dtype)
    finished = torch.rand(shape[:-1]) < 0.5 if done else None
    weights, ids, rows = moe_gating_top_k_softmax(x, finished, k)
    second, second_ids, full = moe_gating_top_k_softmax_v2(
        x, k=k, finished=finished, renorm=0, output_softmax=not three
    )
    renormed, _, none = moe_gating_top_k_softmax_v2(x, k=k, renorm=1)
    assert none.shape == (0,)
    assert torch.equal(second, weights)
    assert torch.equal(second_ids, ids)
    flat = [t.reshape(-1, t.shape[-1]) for t in (x, weights, ids, rows, renormed)]
    total = len(flat[0])
    for t in range(total):
        probabilities = softmax(f64(flat[0])[t])
        order = np.argsort(-probabilities)[:k]
        assert_close(flat[1][t], probabilities[order])
        assert_close(flat[4][t], probabilities[order] / probabilities[order].sum())
        over = finished is not None and bool(finished.reshape(-1)[t])
        assert flat[2][t].tolist() == ([8] * k if over else order.tolist())
        assert flat[3][t].tolist() == [t + j * total for j in range(k)]
        if not three:
            np.testing.assert_allclose(f64(full)[t], probabilities, rtol=1e-5)


def test_gating_softmax_limits() -> None:
    op = "npu_moe_gating_top_k_softmax"
    with refuses(op, r"k must be in \[1, 8\]"):
        moe_gating_top_k_softmax(torch.zeros(2, 8), None, 9)
    with refuses(op, "k must be at most 1024"):
        moe_gating_top_k_softmax(torch.zeros(2, 2000), None, 1025)
    with refuses(op, "finished must be bool"):
        moe_gating_top_k_softmax(torch.zeros(2, 8), torch.zeros(2), 1)
    with refuses(op + "_v2", "renorm must be 0 or 1"):
        moe_gating_top_k_softmax_v2(torch.zeros(2, 8), renorm=2)


@given(
    tokens=st.integers(1, 6),
    k=st.integers(1, 4),
    limits=st.sampled_from([(0, 8), (2, 5), (7, 8), (0, 1)]),
    kind=st.sampled_from([0, 1, 2]),
    quant=st.sampled_from([-1, 1]),
    scaled=st.booleans(),
    scatter=st.booleans(),
    active=st.sampled_from([-1, 0, 3, 1000]),
    dtype=floats,
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_init_routing_v2(
    tokens: int,
    k: int,
    limits: tuple[int, int],
    kind: int,
    quant: int,
    scaled: bool,
    scatter: bool,
    active: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    first, last = limits
    ids = torch.randint(8, (tokens, k), dtype=torch.int32)
    x = torch.randn(tokens, 4).to(dtype)
    scale = None
    if scaled:
        scale = torch.rand(tokens) if quant == -1 else torch.rand(last - first, 4) + 0.5
    rows, index, numbers, scales = moe_init_routing_v2(
        x,
        ids,
        scale=scale,
        active_num=active,
        expert_num=8,
        expert_tokens_num_type=kind,
        expert_tokens_num_flag=True,
        quant_mode=quant,
        active_expert_range=list(limits),
        row_idx_type=int(scatter),
        x_dtype=None,
    )
    flat = ids.flatten().tolist()
    copies = [(e, p) for e in range(first, last) for p in range(tokens * k) if flat[p] == e]
    counts = [sum(e == expert for e, _ in copies) for expert in range(first, last)]
    capacity = tokens * k if active <= 0 else min(active, tokens * k)
    kept = copies[:capacity]
    assert rows.shape == (capacity, 4)
    assert is_poison(rows[len(kept) :])
    assert is_poison(scales[len(kept) :])
    want = [p for _, p in kept]
    if scatter:
        assert index[: len(kept)].tolist() == want
        assert is_poison(index[len(kept) :])
    else:
        assert index.tolist() == [want.index(p) if p in want else -1 for p in range(tokens * k)]
    if kind == 0:
        assert numbers.tolist() == np.cumsum(counts).tolist()
    elif kind == 1:
        assert numbers.tolist() == counts
    else:
        pairs = [[e + first, c] for e, c in enumerate(counts) if c]
        assert numbers[: len(pairs)].tolist() == pairs
        assert numbers.shape == (8, 2)
        assert len(pairs) == 8 or numbers[len(pairs)].tolist() == [0, 0]
    source = f64(x)[[p // k for p in want]]
    if quant == 1:
        smooth = f64(scale)[[e - first for e, _ in kept]] if scale is not None else 1.0
        assert_quantised(rows[: len(kept)], scales[: len(kept)], source * smooth)
    else:
        np.testing.assert_array_equal(f64(rows[: len(kept)]), source)
        if scale is not None:
            np.testing.assert_array_equal(f64(scales[: len(kept)]), f64(scale)[[p // k for p in want]])
        else:
            assert is_poison(scales)


def test_init_routing_v2_limits() -> None:
    op = "npu_moe_init_routing_v2"

    def call(**changes: Any) -> Any:
        arguments = {
            "x": torch.zeros(3, 4),
            "expert_idx": torch.zeros(3, 2, dtype=torch.int32),
            "expert_num": 8,
            "expert_tokens_num_flag": True,
            "expert_tokens_num_type": 1,
            "active_num": 6,
            "active_expert_range": [0, 8],
            "x_dtype": None,
        }
        arguments |= changes
        if changes.get("x_dtype") == "absent":
            del arguments["x_dtype"]
        return moe_init_routing_v2(**arguments)

    assert call(expert_tokens_num_flag=False)[2].shape == ()
    for changes, message in (
        ({"expert_idx": torch.zeros(3, 2, dtype=torch.int64)}, "expert_idx must be int32, got int64"),
        ({"expert_idx": torch.full((3, 2), 8, dtype=torch.int32)}, r"expert_idx must lie in \[0, 8\)"),
        ({"expert_idx": torch.full((3, 2), -1, dtype=torch.int32)}, r"expert_idx must lie in \[0, 8\)"),
        ({"expert_idx": torch.zeros(2, 2, dtype=torch.int32)}, "must have the 3 rows of x"),
        ({"expert_num": 0}, r"expert_num must be in \(0, 10240\]"),
        ({"expert_num": 5121, "expert_tokens_num_type": 2}, r"expert_num must be in \(0, 5120\]"),
        ({"active_expert_range": [4, 9]}, "active_expert_range must be increasing"),
        ({"active_expert_range": [4, 4]}, "active_expert_range must be increasing"),
        ({"active_num": -2}, "active_num must be at least -1"),
        ({"row_idx_type": 2}, "row_idx_type must be 0 or 1"),
        ({"x": torch.zeros(3, 4, dtype=torch.int8), "quant_mode": 1}, "x with quant_mode 1 must be"),
        ({"scale": torch.zeros(2)}, r"scale without quantisation must have shape \[3\]"),
        ({"scale": torch.zeros(7, 4), "quant_mode": 1}, "scale with dynamic quantisation must have shape"),
        (
            {"x_dtype": "absent", "scale": torch.zeros(1, 4), "quant_mode": 1},
            "scale with dynamic quantisation must have",
        ),
        ({"x_dtype": "absent", "active_num": -1}, "active_num must be T \\* K = 6 with torch_npu 2.7.1"),
        ({"x_dtype": "absent", "active_expert_range": []}, "with torch_npu 2.7.1"),
        ({"x_dtype": "absent", "expert_tokens_num_flag": False}, "with torch_npu 2.7.1"),
        ({"x_dtype": "absent", "expert_tokens_num_type": 0}, "with torch_npu 2.7.1"),
    ):
        with refuses(op, message):
            call(**changes)
    with pytest.raises(NotImplementedError, match="quant_mode 0"):
        call(quant_mode=0)


@given(tokens=st.integers(1, 6), k=st.integers(1, 3), active=st.integers(0, 8), dtype=floats)
@settings(max_examples=30, deadline=None)
def test_init_routing_v1_round_trip(tokens: int, k: int, active: int, dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 4).to(dtype)
    _, ids, rows = moe_gating_top_k_softmax(torch.randn(tokens, 8), None, k)
    expanded, where, experts = moe_init_routing(x, rows, ids, active)
    assert experts.tolist() == sorted(ids.flatten().tolist())
    assert expanded.shape == (min(tokens, active) * k, 4)
    for t in range(tokens):
        for j in range(k):
            row = int(where[j * tokens + t])
            assert int(experts[row]) == int(ids[t, j])
            if row < len(expanded):
                assert torch.equal(expanded[row], x[t])
    sums = moe_compute_expert_tokens(experts, 8)
    assert sums.tolist() == [sum(e <= i for e in experts.tolist()) for i in range(8)]
    full, where, _ = moe_init_routing(x, rows, ids, tokens)
    scales = torch.rand(tokens, k).to(dtype)
    out = moe_finalize_routing(full, None, None, None, scales, where, None, 0)
    assert_close(out, f64(x) * f64(scales).sum(1, keepdims=True), scale=8)


def test_init_routing_v1_limits() -> None:
    ids = torch.zeros(3, 2, dtype=torch.int32)
    with refuses("npu_moe_init_routing", "row_idx must be int32"):
        moe_init_routing(torch.zeros(3, 4), ids.long(), ids, 3)
    with refuses("npu_moe_init_routing", r"fewer than 2\*\*24"):
        moe_init_routing(torch.zeros(1, 1).expand(4096, 4096), ids, ids, 3)
    with refuses("npu_moe_compute_expert_tokens", "must never fall"):
        moe_compute_expert_tokens(torch.tensor([1, 0], dtype=torch.int32), 2)
    with refuses("npu_moe_compute_expert_tokens", r"num_expert must be in \(0, 2048\]"):
        moe_compute_expert_tokens(torch.zeros(1, dtype=torch.int32), 2049)


@given(
    tokens=st.integers(1, 5),
    k=st.integers(1, 4),
    dtype=floats,
    local=st.booleans(),
    bias=st.booleans(),
    skips=st.integers(0, 2),
)
@settings(max_examples=40, deadline=None)
def test_finalize_routing_after_init_routing_v2(
    tokens: int, k: int, dtype: torch.dtype, local: bool, bias: bool, skips: int
) -> None:
    torch.manual_seed(tokens + k)
    x = torch.randn(tokens, 4).to(dtype)
    ids = torch.stack([torch.randperm(8)[:k] for _ in range(tokens)]).int()
    last = 3 if local else 8
    rows, index, _, _ = moe_init_routing_v2(
        x, ids, expert_num=8, active_expert_range=[0, last], expert_tokens_num_flag=True, x_dtype=None
    )
    scales = torch.rand(tokens, k).to(dtype)
    biases = torch.randn(8, 4).to(dtype) if bias else None
    skip = [torch.randn(tokens, 4).to(dtype) if i < skips else None for i in range(2)]
    out = moe_finalize_routing(rows, *skip, biases, scales, index, ids if bias else None, 2)
    expected = sum((f64(s) for s in skip if s is not None), np.zeros((tokens, 4)))
    for t in range(tokens):
        for j in range(k):
            if int(ids[t, j]) < last:
                row = f64(x)[t] + (f64(biases)[int(ids[t, j])] if biases is not None else 0)
                expected[t] += f64(scales)[t, j] * row
    assert_close(out, expected, scale=8)


def test_finalize_routing_takes_float32_scales_beside_bfloat16_rows_in_the_newer_wheel() -> None:
    rows, index = torch.randn(6, 4).bfloat16(), torch.arange(6, dtype=torch.int32)
    scales = torch.rand(3, 2)
    out = moe_finalize_routing(rows, None, None, None, scales, index, None, 2, 1)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (rows.float().view(3, 2, 4) * scales.unsqueeze(2)).sum(1).bfloat16())


def test_finalize_routing_limits() -> None:
    op = "npu_moe_finalize_routing"
    rows, index, scales = torch.zeros(6, 4), torch.arange(6, dtype=torch.int32), torch.ones(3, 2)
    for arguments, message in (
        ((rows, None, torch.zeros(3, 4), None, scales, index, None, 2), "skip2 needs skip1"),
        ((rows, None, None, None, scales.half(), index, None, 2), "scales must have the dtype of the rows"),
        ((rows.bfloat16(), None, None, None, scales, index, None, 2), "scales must have the dtype of the rows"),
        ((rows.half(), None, None, None, scales, index, None, 2, 1), "scales must have the dtype of the rows"),
        ((rows, None, None, None, scales, index.long(), None, 2), "must be int32"),
        ((rows, None, None, None, scales, index + 1, None, 2), r"must lie in \[0, 6\)"),
        ((rows, None, None, None, scales, index, None, 1), "with drop_pad_mode 1 must have 3 dimension"),
        ((rows, None, None, torch.zeros(4, 4), scales, index, None, 2), "bias needs export_for_source_row"),
        ((rows, None, None, None, scales, index, None, 4), "drop_pad_mode must be 0 to 3"),
    ):
        with refuses(op, message):
            moe_finalize_routing(*arguments)


@given(
    table=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.int8]),
    wide=st.booleans(),
    scaled=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_re_routing(table: list[list[int]], dtype: torch.dtype, wide: bool, scaled: bool) -> None:
    rows = [(r, e, i) for r, counts in enumerate(table) for e, n in enumerate(counts) for i in range(n)]
    tokens = torch.tensor([[r * 16 + e * 4 + i] for r, e, i in rows]).reshape(-1, 1).to(dtype)
    counts = torch.tensor(table, dtype=torch.int64 if wide else torch.int32)
    scales = torch.arange(len(rows)).float() if scaled else None
    moved, moved_scales, source, per_expert = moe_re_routing(tokens, counts, per_token_scales=scales)
    order = sorted(range(len(rows)), key=lambda i: (rows[i][1], rows[i][0], rows[i][2]))
    assert source.tolist() == order
    assert torch.equal(moved, tokens[order])
    assert per_expert.tolist() == [sum(column) for column in zip(*table, strict=True)]
    assert per_expert.dtype == counts.dtype
    assert moved_scales.tolist() == [float(i) for i in order] if scaled else is_poison(moved_scales)


def test_re_routing_limits() -> None:
    op, tokens, table = "npu_moe_re_routing", torch.zeros(3, 4).half(), torch.tensor([[1, 2]])
    for arguments, options, message in (
        ((tokens.float(), table), {}, "tokens must be float16 or bfloat16 or int8"),
        ((torch.zeros(3, 16384).half(), table), {}, "below 16384"),
        ((tokens, table + 1), {}, "counts must sum to the 3 rows of tokens, got 5"),
        ((tokens, table), {"expert_token_num_type": 0}, "expert_token_num_type must be 1"),
        ((tokens, table), {"idx_type": 1}, "idx_type must be 0"),
    ):
        with refuses(op, message):
            moe_re_routing(*arguments, **options)


@given(
    tokens=st.integers(1, 6),
    k=st.integers(1, 4),
    cut=st.sampled_from([None, 0, 2, -1, 100]),
    dtype=floats,
    probs=st.sampled_from([None, torch.float32, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_permute_and_unpermute(
    tokens: int, k: int, cut: int | None, dtype: torch.dtype, probs: torch.dtype | None
) -> None:
    torch.manual_seed(k)
    x = torch.randn(tokens, 4).to(dtype)
    ids = torch.randint(8, (tokens, k))
    permuted, where = moe_token_permute(x, ids, cut)
    flat = ids.flatten().tolist()
    order = sorted(range(tokens * k), key=lambda p: flat[p])
    kept = {None: tokens * k, 0: tokens * k, 2: min(2, tokens * k), -1: tokens * k - 1, 100: tokens * k}[cut]
    np.testing.assert_array_equal(f64(permuted), f64(x)[[p // k for p in order[:kept]]])
    assert [order.index(p) for p in range(tokens * k)] == where.tolist()
    whole, where = moe_token_permute(x, ids)
    weights = None if probs is None else torch.rand(tokens, k).to(probs)
    restored = moe_token_unpermute(whole, where, weights)
    if weights is None:
        np.testing.assert_array_equal(f64(restored), np.repeat(f64(x), k, axis=0))
    else:
        assert_close(restored, f64(x) * f64(weights).sum(1, keepdims=True), scale=8)


def test_permute_limits() -> None:
    rows, where, probs = torch.zeros(6, 4), torch.arange(6, dtype=torch.int32), torch.ones(3, 2)
    op = "npu_moe_token_unpermute"
    for arguments, message in (
        ((rows, where - 1, probs), r"must lie in \[0, 6\), got values from -1"),
        ((rows, torch.zeros(6, dtype=torch.int32), probs), "must not repeat, got 0 more than once"),
        ((rows, where.long(), probs), "sorted_indices must be int32, got int64"),
        ((rows, where, torch.ones(2, 2)), "must have the 4 elements of probs, got 6"),
    ):
        with refuses(op, message):
            moe_token_unpermute(*arguments)
    with refuses("npu_moe_token_permute", "top-k must be at most 512, got 513"):
        moe_token_permute(torch.zeros(1, 2), torch.zeros(1, 513, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match="padded_mode"):
        moe_token_permute(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), None, True)


@pytest.mark.parametrize("mode", [0, 1])
def test_update_expert(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_NPU_SOC", "A3")
    torch.manual_seed(0)
    world, tokens, k, experts, columns = 8, 7, 3, 6, 5
    replicas = torch.randint(1, columns, (experts, 1))
    table = torch.cat((replicas, torch.randint(0, 99, (experts, columns - 1))), dim=1).int()
    ids = torch.randint(experts, (tokens, k), dtype=torch.int32)
    scales, threshold = torch.rand(tokens, k), torch.full((1, k), 0.3)
    active = torch.arange(tokens) < 5
    for rank in range(world):
        physical, kept = moe_update_expert(
            ids,
            table,
            expert_scales=scales,
            pruning_threshold=threshold,
            active_mask=active,
            local_rank_id=rank,
            world_size=world,
            balance_mode=mode,
        )
        for t in range(tokens):
            for j in range(k):
                row = table[int(ids[t, j])].tolist()
                replica = t % row[0] if mode else rank // -(-world // row[0])
                assert int(physical[t, j]) == row[1 + replica]
                big = float(scales[t, j]) >= 0.3 * float(scales[t].sum())
                assert bool(kept[t, j]) == (big and t < 5)


def test_update_expert_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    op, ids, table = "npu_moe_update_expert", torch.zeros(1, 1, dtype=torch.int32), torch.tensor([[1, 0]]).int()
    with refuses(op, "exists on A3 only, got A2"):
        moe_update_expert(ids, table, local_rank_id=0, world_size=2)
    monkeypatch.setenv("VIRTUAL_NPU_SOC", "A3")
    for arguments, message in (
        ({"local_rank_id": 0, "world_size": 1}, r"world_size must be in \[2, 768\], got 1"),
        ({"local_rank_id": 2, "world_size": 2}, r"local_rank_id must be in \[0, 2\), got 2"),
        ({"balance_mode": 2}, "balance_mode must be 0 or 1"),
        ({"balance_mode": 1, "expert_scales": torch.zeros(1, 1)}, "must be given together"),
        ({"balance_mode": 1, "active_mask": torch.ones(1).bool()}, "active_mask needs"),
    ):
        with refuses(op, message):
            moe_update_expert(ids, table, **arguments)
