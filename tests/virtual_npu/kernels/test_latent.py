# SPDX-License-Identifier: Apache-2.0
"""Latent attention (MLA): the fused operator with rope inputs, the write of both caches, gather and merge, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ascend_patch.virtual_npu.kernels.fused_infer_attention import (
    fused_infer_attention_score,
    fused_infer_attention_score_v2,
)
from vllm_ascend_patch.virtual_npu.kernels.kv_cache import scatter_pa_kv_cache
from vllm_ascend_patch.virtual_npu.kernels.latent_context import attention_update, gather_pa_kv_cache

from .reference import assert_close, attention_row, f64

MASK = torch.ones(2048, 2048, dtype=torch.int8).triu(1)
SCALE = 0.07


def latent_case(seed: int, keys: list[int], block: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], ...]:
    """Per request latent rows and rope rows, the two caches that ``scatter`` filled with them, and the block table."""
    torch.manual_seed(seed)
    latent = [torch.randn(n, 512).to(dtype) for n in keys]
    rope = [torch.randn(n, 64).to(dtype) for n in keys]
    needed = [-(-n // block) for n in keys]
    order = torch.randperm(sum(needed) + 1).tolist()
    table = torch.full((len(keys), max(needed)), -1, dtype=torch.int32)
    slots = []
    for row, (count, n) in enumerate(zip(needed, keys, strict=True)):
        for column in range(count):
            table[row, column] = order.pop()
        slots += [int(table[row, j // block]) * block + j % block for j in range(n)]
    caches = [torch.full((sum(needed) + 1, block, 1, width), float("nan"), dtype=dtype) for width in (512, 64)]
    rows = [torch.cat(parts).unsqueeze(1) for parts in (latent, rope)]
    scatter_pa_kv_cache(*rows, *caches, torch.tensor(slots, dtype=torch.int32), cache_mode="Norm")
    return latent, rope, caches, [table]


@given(
    pairs=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40)), min_size=1, max_size=3),
    heads=st.sampled_from([1, 2, 16]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    block=st.sampled_from([16, 128]),
    dims=st.sampled_from([3, 4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_absorbed_attention_in_tnd(
    pairs: list[tuple[int, int]], heads: int, dtype: torch.dtype, block: int, dims: int, seed: int
) -> None:
    queries = [q for q, _ in pairs]
    keys = [q + more for q, more in pairs]
    latent, rope, caches, (table,) = latent_case(seed, keys, block, dtype)
    query, query_rope = torch.randn(sum(queries), heads, 512).to(dtype), torch.randn(sum(queries), heads, 64).to(dtype)
    pages = [cache.flatten(2) if dims == 3 else cache.transpose(1, 2) for cache in caches]
    out, _ = fused_infer_attention_score(
        query,
        pages[0],
        pages[0],
        query_rope=query_rope,
        key_rope=pages[1],
        atten_mask=MASK,
        sparse_mode=3,
        actual_seq_lengths=list(np.cumsum(queries)),
        actual_seq_lengths_kv=keys,
        block_table=table,
        block_size=block,
        input_layout="TND",
        num_heads=heads,
        num_key_value_heads=1,
        scale=SCALE,
    )
    row = 0
    for count, total, c, r in zip(queries, keys, map(f64, latent), map(f64, rope), strict=True):
        k = np.concatenate((c, r), 1)
        for i in range(count):
            q = np.concatenate((f64(query[row]), f64(query_rope[row])), 1)
            seen = total - count + i + 1
            want = np.stack([attention_row(q[h], k[:seen], c[:seen], SCALE) for h in range(heads)])
            assert_close(out[row], want, scale=2)
            row += 1


def decode(**changes: Any) -> dict[str, Any]:
    """A legal BSND decode step of two requests, with changes."""
    torch.manual_seed(1)
    call = {
        "query": torch.randn(2, 1, 4, 512).bfloat16(),
        "key": torch.randn(3, 128, 512).bfloat16(),
        "query_rope": torch.randn(2, 1, 4, 64).bfloat16(),
        "key_rope": torch.randn(3, 128, 64).bfloat16(),
        "actual_seq_lengths_kv": [130, 7],
        "block_table": torch.tensor([[2, 0], [1, -1]], dtype=torch.int32),
        "block_size": 128,
        "num_heads": 4,
        "num_key_value_heads": 1,
        "scale": SCALE,
        "input_layout": "BSND",
    }
    call["value"] = call["key"]
    return {**call, **changes}


def test_absorbed_decode_in_bsnd_and_version_2() -> None:
    call = decode()
    out, lse = fused_infer_attention_score(**call)
    assert lse.numel() == 0
    for request, blocks, length in ((0, [2, 0], 130), (1, [1], 7)):
        c = f64(call["key"][blocks].flatten(0, 1))[:length]
        k = np.concatenate((c, f64(call["key_rope"][blocks].flatten(0, 1))[:length]), 1)
        q = np.concatenate((f64(call["query"][request, 0]), f64(call["query_rope"][request, 0])), 1)
        want = np.stack([attention_row(q[h], k, c, SCALE) for h in range(4)])
        assert_close(out[request, 0], want, scale=2)
    renamed = {
        "num_heads": "num_query_heads",
        "scale": "softmax_scale",
        "actual_seq_lengths_kv": "actual_seq_kvlen",
    }
    again, _ = fused_infer_attention_score_v2(**{renamed.get(name, name): value for name, value in call.items()})
    assert torch.equal(again, out)


def test_prefill_of_head_size_256() -> None:
    torch.manual_seed(2)
    q, k, v = (torch.randn(5, 2, 256).bfloat16() for _ in "qkv")
    out, lse = fused_infer_attention_score(
        q,
        k,
        v,
        atten_mask=MASK,
        sparse_mode=3,
        actual_seq_lengths=[5],
        actual_seq_lengths_kv=[5],
        input_layout="TND",
        num_heads=2,
        scale=SCALE,
        softmax_lse_flag=True,
    )
    assert lse.shape == (5, 2, 1)
    for i in range(5):
        assert_close(out[i, 1], attention_row(f64(q)[i, 1], f64(k)[: i + 1, 1], f64(v)[: i + 1, 1], SCALE), scale=2)


@given(
    spans=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=3),
    sums=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_gather_reads_a_stretch_of_both_caches(spans: list[tuple[int, int]], sums: bool, seed: int) -> None:
    lengths = [length for _, length in spans]
    latent, rope, (latents, ropes), (table,) = latent_case(seed, [16 * s + n + 3 for s, n in spans], 16, torch.bfloat16)
    key, value = (torch.full((sum(lengths), 1, width), float("nan")).bfloat16() for width in (512, 64))
    gather_pa_kv_cache(
        latents,
        ropes,
        table,
        torch.tensor([0, *np.cumsum(lengths)] if sums else lengths, dtype=torch.int32),
        key,
        value,
        seq_offset=torch.tensor([16 * start for start, _ in spans], dtype=torch.int32),
        is_seq_lens_cumsum=sums,
    )
    for dense, rows in ((key, latent), (value, rope)):
        wanted = [part[16 * start : 16 * start + n] for (start, n), part in zip(spans, rows, strict=True)]
        assert torch.equal(dense.squeeze(1), torch.cat(wanted))


@given(parts=st.integers(1, 4), dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_update_merges_parts_of_one_softmax(parts: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    lse = [torch.randn(5) for _ in range(parts)]
    out = [torch.randn(5, 16).to(dtype) for _ in range(parts)]
    if parts > 1:  # a part without keys
        lse[0][2] = float("-inf")
    merged, total = attention_update(lse, out, 1)
    weights = np.exp(np.stack([f64(part) for part in lse]))
    want = sum(w[:, None] * f64(part) for w, part in zip(weights, out, strict=True)) / weights.sum(0)[:, None]
    assert_close(merged, want, scale=2)
    np.testing.assert_allclose(f64(total), np.log(weights.sum(0)), rtol=1e-5, atol=1e-6)
    assert attention_update(lse, out, 0)[1].isnan().all()


def test_what_is_not_modelled_names_itself() -> None:
    for changes, feature in (
        ({"query": torch.zeros(2, 1, 4, 512, dtype=torch.int8)}, "int8 queries"),
        ({"input_layout": "TND_NTD"}, "layout TND_NTD with rope"),
        ({"query": torch.zeros(2, 1, 4, 128).bfloat16()}, "head size 128 with rope"),
        ({"block_table": None}, "rope inputs without block_table"),
        ({"sparse_mode": 4}, "sparse_mode 4 with rope"),
    ):
        with pytest.raises(NotImplementedError, match=feature):
            fused_infer_attention_score(**decode(**changes))
    with pytest.raises(NotImplementedError, match="update_type 2"):
        attention_update([torch.zeros(1)], [torch.zeros(1, 8)], 2)
