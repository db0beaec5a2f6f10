# SPDX-License-Identifier: Apache-2.0
"""Fused infer attention and ATB paged attention: values against a row-by-row formula, and every documented limit."""

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
from vllm_ascend_patch.virtual_npu.kernels.fused_infer_out import fused_infer_attention_score_out
from vllm_ascend_patch.virtual_npu.kernels.paged_attention import paged_attention

from .reference import assert_close, attention_row, f64

MASK = torch.ones(2048, 2048, dtype=torch.int8).triu(1)
ALL = 2**31 - 1


def visible(mode: int, i: int, queries: int, keys: int, pre: int = ALL, nxt: int = ALL) -> list[int]:
    """The keys that query i may see."""
    if mode == 2:
        return [j for j in range(keys) if j <= i]
    if mode == 3:
        return [j for j in range(keys) if j <= i + keys - queries]
    if mode == 4:
        return [j for j in range(keys) if i + keys - queries - pre <= j <= i + keys - queries + nxt]
    return list(range(keys))


class Case:
    """Random requests with keys and values, dense or cut into pages in random order."""

    def __init__(
        self, seed: int, queries: list[int], keys: list[int], heads: int, kv_heads: int, size: int, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(seed)
        self.queries, self.keys, self.heads, self.kv_heads, self.size = queries, keys, heads, kv_heads, size
        self.scale = size**-0.5
        self.q = [torch.randn(n, heads, size).to(dtype) for n in queries]
        self.k = [torch.randn(n, kv_heads, size).to(dtype) for n in keys]
        self.v = [torch.randn(n, kv_heads, size).to(dtype) for n in keys]

    def expected(self, mode: int, pre: int = ALL, nxt: int = ALL) -> list[np.ndarray]:
        group, results = self.heads // self.kv_heads, []
        for q, k, v in zip(map(f64, self.q), map(f64, self.k), map(f64, self.v), strict=True):
            out = np.zeros((len(q), self.heads, self.size))
            for i in range(len(q)):
                seen = visible(mode, i, len(q), len(k), pre, nxt)
                for h in range(self.heads):
                    rows = (k[seen, h // group], v[seen, h // group])
                    out[i, h] = attention_row(q[i, h], *rows, self.scale) if seen else np.nan
            results.append(out)
        return results

    def pages(self, block: int, form: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Caches with NaN wherever no request has a key, and the block table (unused entries -1)."""
        needed = [-(-n // block) for n in self.keys]
        order = torch.randperm(sum(needed) + 2).tolist()
        table = torch.full((len(self.keys), max(needed) + 1), -1, dtype=torch.int32)
        shape = (sum(needed) + 2, block, self.kv_heads, self.size)
        caches = [torch.full(shape, float("nan"), dtype=self.q[0].dtype) for _ in range(2)]
        for row, (count, k, v) in enumerate(zip(needed, self.k, self.v, strict=True)):
            for column in range(count):
                page = table[row, column] = order.pop()
                piece = slice(column * block, (column + 1) * block)
                for cache, rows in zip(caches, (k[piece], v[piece]), strict=True):
                    cache[page, : len(rows)] = rows
        if form == "BnNBsD":
            key, value = (cache.transpose(1, 2).contiguous() for cache in caches)
        else:
            key, value = (cache.flatten(2) for cache in caches)
        return key, value, table

    def common(self) -> dict[str, Any]:
        return {"num_heads": self.heads, "num_key_value_heads": self.kv_heads, "scale": self.scale}


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=3)
dtypes = st.sampled_from([torch.float16, torch.bfloat16])


@given(
    pairs=lengths,
    heads=st.sampled_from([(8, 2), (4, 1), (2, 2)]),
    dtype=dtypes,
    mode=st.sampled_from([0, 3, 4]),
    block=st.sampled_from([16, 32, 128]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_tnd_over_pages(
    pairs: list[tuple[int, int]], heads: tuple[int, int], dtype: torch.dtype, mode: int, block: int, seed: int
) -> None:
    queries = [q for q, _ in pairs]
    case = Case(seed, queries, [q + more for q, more in pairs], *heads, 128, dtype)
    form = "BnNBsD" if heads[0] != heads[1] and seed % 2 else "BnBsH"
    key, value, table = case.pages(block, form)
    pre, nxt = (7, 0) if mode == 4 else (ALL, ALL)
    out, lse = fused_infer_attention_score(
        torch.cat(case.q),
        key,
        value,
        atten_mask=MASK if mode else None,
        actual_seq_lengths=list(np.cumsum(queries)),
        actual_seq_lengths_kv=case.keys,
        block_table=table,
        block_size=block,
        input_layout="TND",
        sparse_mode=mode,
        pre_tokens=pre,
        next_tokens=nxt,
        **case.common(),
    )
    assert out.dtype == dtype
    assert lse.shape == (0,)
    assert_close(out, np.concatenate(case.expected(mode, pre, nxt)), scale=2)


@given(pairs=lengths, dtype=dtypes, mode=st.sampled_from([0, 3]), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_tnd_dense_and_its_log_sum_exp(pairs: list[tuple[int, int]], dtype: torch.dtype, mode: int, seed: int) -> None:
    queries, keys = [q for q, _ in pairs], [q + more for q, more in pairs]
    case = Case(seed, queries, keys, 4, 4, 64, dtype)
    out, lse = fused_infer_attention_score(
        torch.cat(case.q),
        torch.cat(case.k),
        torch.cat(case.v),
        atten_mask=MASK.bool() if mode else None,
        actual_seq_lengths=list(np.cumsum(queries)),
        actual_seq_lengths_kv=list(np.cumsum(keys)),
        input_layout="TND",
        sparse_mode=mode,
        softmax_lse_flag=True,
        **case.common(),
    )
    assert_close(out, np.concatenate(case.expected(mode)), scale=2)
    assert lse.shape == (sum(queries), 4, 1)
    first = f64(case.k[0])[visible(mode, 0, queries[0], keys[0]), 1] @ f64(case.q[0])[0, 1] * case.scale
    np.testing.assert_allclose(float(lse[0, 1, 0]), np.log(np.exp(first).sum()), rtol=1e-5, atol=1e-5)


@given(
    pairs=lengths,
    layout=st.sampled_from(["BSH", "BSND", "BNSD", "BNSD_BSND"]),
    heads=st.sampled_from([(8, 2), (2, 2)]),
    size=st.sampled_from([16, 80, 128]),
    mode=st.sampled_from([0, 2, 3, 4]),
    paged=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_batched_layouts(
    pairs: list[tuple[int, int]],
    layout: str,
    heads: tuple[int, int],
    size: int,
    mode: int,
    paged: bool,
    seed: int,
) -> None:
    queries = [q for q, _ in pairs]
    keys = [q + more for q, more in pairs]
    if layout == "BNSD_BSND" and max(queries) == 1:
        queries[0], keys[0] = 2, keys[0] + 1
    case = Case(seed, queries, keys, *heads, size, torch.bfloat16)
    longest = max(queries)
    query = torch.full((len(queries), longest, heads[0], size), float("nan"), dtype=torch.bfloat16)
    dense = [torch.full((len(keys), max(keys), heads[1], size), float("nan"), dtype=torch.bfloat16) for _ in "kv"]
    for b, (q, k, v) in enumerate(zip(case.q, case.k, case.v, strict=True)):
        query[b, : len(q)], dense[0][b, : len(k)], dense[1][b, : len(v)] = q, k, v

    def arrange(tensor: torch.Tensor) -> torch.Tensor:
        if layout == "BSH":
            return tensor.flatten(2)
        return tensor.transpose(1, 2).contiguous() if layout.startswith("BNSD") else tensor

    key, value = map(arrange, dense)
    arguments: dict[str, Any] = {}
    if paged:
        form = "BnNBsD" if layout.startswith("BNSD") and seed % 2 else "BnBsH"
        key, value, table = case.pages(128, form)
        arguments = {"block_table": table, "block_size": 128}
    pre, nxt = (6, 0) if mode == 4 else (ALL, ALL)
    out, lse = fused_infer_attention_score(
        arrange(query),
        key,
        value,
        atten_mask=MASK if mode else None,
        actual_seq_lengths=queries,
        actual_seq_lengths_kv=keys,
        input_layout=layout,
        sparse_mode=mode,
        pre_tokens=pre,
        next_tokens=nxt,
        softmax_lse_flag=True,
        **arguments,
        **case.common(),
    )
    assert lse.shape == (len(queries), heads[0], longest, 1)
    assert out.shape == (query if layout == "BNSD_BSND" else arrange(query)).shape
    if layout == "BSH":
        out = out.unflatten(2, (heads[0], size))
    elif layout == "BNSD":
        out = out.transpose(1, 2)
    # With one query per request sparse_mode is documented as ignored: decode sees every key.
    for b, expected in enumerate(case.expected(0 if longest == 1 else mode, pre, nxt)):
        assert_close(out[b, : queries[b]], expected, scale=2)
        assert out[b, queries[b] :].isnan().all()


def test_full_mask_in_sparse_mode_0_and_1() -> None:
    case = Case(1, [5, 5], [7, 7], 4, 2, 32, torch.float16)
    masked = torch.rand(2, 1, 5, 7) < 0.4
    masked[..., 0] = False
    for mode in (0, 1):
        out, _ = fused_infer_attention_score(
            torch.stack(case.q),
            torch.stack(case.k),
            torch.stack(case.v),
            atten_mask=masked,
            input_layout="BSND",
            sparse_mode=mode,
            **case.common(),
        )
        for b in range(2):
            for i in range(5):
                seen = np.flatnonzero(~masked[b, 0, i].numpy())
                want = attention_row(f64(case.q[b])[i, 3], f64(case.k[b])[seen, 1], f64(case.v[b])[seen, 1], case.scale)
                assert_close(out[b, i, 3], want, scale=2)


def test_a_request_without_keys_yields_zeros_and_a_row_that_sees_nothing_is_unwritten() -> None:
    case = Case(2, [3, 3], [0, 2], 2, 2, 32, torch.float16)
    query = torch.stack(case.q)
    keys = torch.randn(2, 4, 2, 32).half()
    arguments = {"actual_seq_lengths_kv": [0, 2], "input_layout": "BSND", "sparse_mode": 3, "atten_mask": MASK}
    out, _ = fused_infer_attention_score(query, keys, keys, **arguments, **case.common())
    assert (out[0] == 0).all()
    assert out[1, 0].isnan().all()
    assert not out[1, 1:].isnan().any()
    out, _ = fused_infer_attention_score(query, keys, keys, inner_precise=2, **arguments, **case.common())
    assert (out[1, 0] == 0).all()


@pytest.mark.parametrize(("size", "mode", "pre"), [(128, 3, ALL), (64, 3, ALL), (64, 4, 2)])
def test_version_2_renames_and_adds_a_sink(size: int, mode: int, pre: int) -> None:
    nxt = 0 if mode == 4 else ALL
    case = Case(3, [4], [6], 2, 2, size, torch.bfloat16)
    sink = torch.tensor([0.5, -1.0], dtype=torch.bfloat16)
    arguments: dict[str, Any] = {
        "actual_seq_qlen": [4],
        "actual_seq_kvlen": [6],
        "num_query_heads": 2,
        "softmax_scale": case.scale,
        "input_layout": "TND",
        "sparse_mode": mode,
        "pre_tokens": pre,
        "next_tokens": nxt,
        "atten_mask": MASK,
    }
    plain, _ = fused_infer_attention_score_v2(case.q[0], case.k[0], case.v[0], **arguments)
    assert_close(plain, case.expected(mode, pre, nxt)[0], scale=2)
    out, _ = fused_infer_attention_score_v2(case.q[0], case.k[0], case.v[0], learnable_sink=sink, **arguments)
    seen = visible(mode, 0, 4, 6, pre, nxt)
    scores = np.exp(f64(case.k[0])[seen, 1] @ f64(case.q[0])[0, 1] * case.scale)
    want = scores @ f64(case.v[0])[seen, 1] / (scores.sum() + np.exp(-1.0))
    assert_close(out[0, 1], want, scale=2)


def test_the_out_form_writes_its_arguments() -> None:
    case = Case(4, [4], [4], 2, 2, 128, torch.bfloat16)
    arguments = {"input_layout": "BSND", **case.common()}
    tensors = [tensor.unsqueeze(0) for tensor in (case.q[0], case.k[0], case.v[0])]
    want, _ = fused_infer_attention_score(*tensors, **arguments)
    out = torch.empty_like(want)
    result, _ = fused_infer_attention_score_out(*tensors, out=[out, torch.empty(0)], **arguments)
    assert result is out
    assert torch.equal(out, want)


def tnd(**changes: Any) -> dict[str, Any]:
    """A legal paged TND call of two requests, with changes."""
    call = {
        "query": torch.zeros(5, 8, 128, dtype=torch.bfloat16),
        "key": torch.zeros(6, 128, 2 * 128, dtype=torch.bfloat16),
        "value": torch.zeros(6, 128, 2 * 128, dtype=torch.bfloat16),
        "atten_mask": MASK,
        "actual_seq_lengths": [3, 5],
        "actual_seq_lengths_kv": [130, 7],
        "block_table": torch.tensor([[0, 1], [2, -1]], dtype=torch.int32),
        "block_size": 128,
        "num_heads": 8,
        "num_key_value_heads": 2,
        "input_layout": "TND",
        "sparse_mode": 3,
    }
    return {**call, **changes}


def bsnd(**changes: Any) -> dict[str, Any]:
    """A legal dense BSND prefill, with changes."""
    call = {
        "query": torch.zeros(2, 4, 8, 64, dtype=torch.float16),
        "key": torch.zeros(2, 9, 2, 64, dtype=torch.float16),
        "value": torch.zeros(2, 9, 2, 64, dtype=torch.float16),
        "num_heads": 8,
        "num_key_value_heads": 2,
        "input_layout": "BSND",
    }
    return {**call, **changes}


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def paged(block: int, pages: int = 8, heads: int = 2, size: int = 64) -> dict[str, Any]:
    """Paged arguments for ``bsnd``."""
    return {
        "key": torch.zeros(pages, block, heads * size, dtype=torch.float16),
        "value": torch.zeros(pages, block, heads * size, dtype=torch.float16),
        "block_table": torch.zeros(2, 1, dtype=torch.int32),
        "block_size": block,
        "actual_seq_lengths_kv": [9, 9],
    }


BROKEN = {
    "layout": (tnd(input_layout="SBH"), "input_layout must be one of"),
    "float32": (tnd(query=zeros(5, 8, 128, dtype=torch.float32)), "query must be float16 or bfloat16, got float32"),
    "mixed dtypes": (tnd(key=zeros(6, 128, 256, dtype=torch.float16)), "key must have the dtype of query"),
    "strided query": (tnd(query=zeros(8, 5, 128).transpose(0, 1)), "query must be contiguous"),
    "head size 272 in TND": (
        tnd(query=zeros(5, 8, 272), key=zeros(6, 128, 544), value=zeros(6, 128, 544)),
        "TND head sizes .* got 272/272",
    ),
    "head size 96 over large pages in TND": (
        tnd(query=zeros(5, 8, 96), key=zeros(6, 1024, 192), value=zeros(6, 1024, 192), block_size=1024),
        "TND head sizes .* got 96/96",
    ),
    "more queries than keys in a band": (
        tnd(actual_seq_lengths_kv=[2, 7], sparse_mode=4, pre_tokens=3, next_tokens=0),
        "with sparse_mode 4 request 0 must not have more queries than keys",
    ),
    "lengths not cumulative": (tnd(actual_seq_lengths=[3, 2]), "never falling"),
    "last length is not T": (tnd(actual_seq_lengths=[3, 4]), "must be the 5 tokens, got 4"),
    "no lengths": (tnd(actual_seq_lengths=None), "TND needs the query and the key/value lengths"),
    "one key length short": (
        tnd(actual_seq_lengths_kv=[130], block_table=torch.zeros(2, 2, dtype=torch.int32)),
        "one key/value length per request",
    ),
    "more queries than keys": (tnd(actual_seq_lengths_kv=[2, 7]), "must not have more queries than keys"),
    "mask without mode": (tnd(sparse_mode=0), "sparse_mode 0 without a mask, or 3 or 4"),
    "mode without mask": (tnd(atten_mask=None), "or 3 or 4 with one, got sparse_mode 3 without"),
    "left-up causal in TND": (tnd(sparse_mode=2), "got sparse_mode 2 with a mask"),
    "small mask": (tnd(atten_mask=MASK[:128, :128].contiguous()), r"exactly 2048x2048, got \[128, 128\]"),
    "inverted mask": (tnd(atten_mask=1 - MASK), "1 above the diagonal"),
    "float mask": (tnd(atten_mask=MASK.half()), "atten_mask must be bool or int8 or uint8"),
    "block_size argument": (tnd(block_size=64), "block_size must be that of the cache, 128, got 64"),
    "block of 8": (
        tnd(key=zeros(6, 8, 256), value=zeros(6, 8, 256), block_size=8, actual_seq_lengths_kv=[9, 7]),
        "multiple of 16 up to 1024",
    ),
    "int64 table": (tnd(block_table=torch.zeros(2, 2, dtype=torch.int64)), "block_table must be int32"),
    "table rows": (tnd(block_table=torch.zeros(3, 2, dtype=torch.int32)), "block_table must have 2 rows"),
    "table too narrow": (tnd(block_table=torch.zeros(2, 1, dtype=torch.int32)), "needs 2 columns"),
    "block id out of range": (
        tnd(block_table=torch.tensor([[0, 6], [2, 0]], dtype=torch.int32)),
        r"block ids of request 0 must lie in \[0, 6\)",
    ),
    "no key lengths in TND": (tnd(actual_seq_lengths_kv=None), "TND needs the query and the key/value lengths"),
    "no key lengths": (bsnd(**paged(128) | {"actual_seq_lengths_kv": None}), "needs the key/value lengths"),
    "pages by head without GQA in TND": (
        tnd(key=zeros(6, 8, 128, 128), value=zeros(6, 8, 128, 128), num_key_value_heads=8, query=zeros(5, 8, 128)),
        "without GQA wants",
    ),
    "inner_precise in TND": (tnd(inner_precise=2), "inner_precise must be 0 or 1 here"),
    "heads argument": (tnd(num_heads=4), "number of heads must be that of the query's shape"),
    "heads do not divide": (tnd(num_key_value_heads=3), "must divide the 8 query heads"),
    "300 heads": (
        bsnd(query=zeros(1, 2, 300, 16), key=zeros(1, 2, 300, 16), value=zeros(1, 2, 300, 16), num_heads=300),
        "at most 256, got 300",
    ),
    "group of 128": (
        bsnd(
            query=zeros(1, 2, 128, 16),
            key=zeros(1, 2, 1, 16),
            value=zeros(1, 2, 1, 16),
            num_heads=128,
            num_key_value_heads=1,
        ),
        "per key/value head at most 64, got 128",
    ),
    "head size 40": (
        bsnd(query=zeros(2, 4, 8, 40), key=zeros(2, 9, 2, 40), value=zeros(2, 9, 2, 40)),
        "multiple of 16, got 40",
    ),
    "head size 528": (
        bsnd(query=zeros(2, 4, 8, 528), key=zeros(2, 9, 2, 528), value=zeros(2, 9, 2, 528)),
        "at most 512",
    ),
    "wide rows": (
        bsnd(
            query=zeros(1, 2, 256, 256),
            key=zeros(1, 2, 256, 256),
            value=zeros(1, 2, 256, 256),
            num_heads=256,
            num_key_value_heads=256,
        ),
        "heads \\* head size must be below 65535",
    ),
    "pages by head for BSND": (
        bsnd(
            **paged(128)
            | {"key": zeros(8, 2, 128, 64, dtype=torch.float16)}
            | {"value": zeros(8, 2, 128, 64, dtype=torch.float16)}
        ),
        "BSND query wants a paged key",
    ),
    "block of 64 with several queries": (bsnd(**paged(64)), "128, 256, 384 or 512"),
    "block of 1024 in decode": (
        bsnd(query=zeros(2, 1, 8, 64, dtype=torch.float16), **paged(1024)),
        "multiple of 16 up to 512",
    ),
    "query length too long": (bsnd(actual_seq_lengths=[5, 1]), "query lengths must be at most 4"),
    "key length too long": (bsnd(actual_seq_lengths_kv=[10, 1]), "key/value lengths must be at most 9"),
    "three of four lengths": (
        bsnd(
            query=zeros(4, 4, 8, 64), key=zeros(4, 9, 2, 64), value=zeros(4, 9, 2, 64), actual_seq_lengths_kv=[9, 9, 9]
        ),
        "lengths must be 1 or at least 4",
    ),
    "mode 7": (bsnd(sparse_mode=7), "sparse_mode must be 0 to 4, got 7"),
    "mode 1 without mask": (bsnd(sparse_mode=1), "needs the full atten_mask"),
    "narrow full mask": (bsnd(atten_mask=torch.zeros(4, 8, dtype=torch.bool)), "must be at least 9"),
    "unequal key and value": (bsnd(value=zeros(2, 9, 2, 32, dtype=torch.float16)), "value .* must have shape"),
    "BNSD_BSND in decode": (
        bsnd(query=zeros(2, 8, 1, 64), key=zeros(2, 2, 9, 64), value=zeros(2, 2, 9, 64), input_layout="BNSD_BSND"),
        "needs more than one query",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_limit(name: str) -> None:
    call, message = BROKEN[name]
    if name != "mixed dtypes":
        for tensor in ("key", "value"):
            call[tensor] = call[tensor].to(call["query"].dtype)
    with pytest.raises(RuntimeError, match=f"npu_fused_infer_attention_score: .*{message}"):
        fused_infer_attention_score(**call)


@pytest.mark.parametrize("size", [16, 64, 96, 192, 256])
def test_tnd_of_other_head_sizes(size: int) -> None:
    """What CANN 9.1 adds: any equal head sizes up to 256, grouped heads and pages included."""
    case = Case(5, [1, 3], [130, 5], 4, 2, size, torch.bfloat16)
    key, value, table = case.pages(128, "BnBsH")
    out, _ = fused_infer_attention_score(
        torch.cat(case.q),
        key,
        value,
        atten_mask=MASK,
        actual_seq_lengths=[1, 4],
        actual_seq_lengths_kv=case.keys,
        block_table=table,
        block_size=128,
        input_layout="TND",
        sparse_mode=3,
        **case.common(),
    )
    assert_close(out, np.concatenate(case.expected(3)), scale=2)


def test_cann_8_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_NPU_CANN", "8.5")
    fused_infer_attention_score(**tnd())
    for size in (64, 96):
        narrow = {name: zeros(6, 128, 2 * size) for name in ("key", "value")}
        with pytest.raises(RuntimeError, match=f"TND head sizes .* got {size}/{size}"):
            fused_infer_attention_score(**tnd(query=zeros(5, 8, size), **narrow))
    with pytest.raises(RuntimeError, match=r"TND takes sparse_mode 0 or 3 with CANN 8\.5"):
        fused_infer_attention_score(**tnd(sparse_mode=4, pre_tokens=3, next_tokens=0))
    row = zeros(1, 1, 64)
    with pytest.raises(RuntimeError, match=r"learnable_sink needs a CANN newer than 8\.5"):
        fused_infer_attention_score_v2(
            row, row, row, actual_seq_qlen=[1], actual_seq_kvlen=[1], input_layout="TND", learnable_sink=zeros(1)
        )


def test_the_calls_that_the_limits_start_from_are_legal() -> None:
    fused_infer_attention_score(**tnd())
    fused_infer_attention_score(**bsnd())
    fused_infer_attention_score(**bsnd(**paged(128)))


def test_unmodelled_features_name_themselves() -> None:
    with pytest.raises(NotImplementedError, match="argument pse_shift"):
        fused_infer_attention_score(**tnd(), pse_shift=zeros(1))
    with pytest.raises(NotImplementedError, match="tree mask"):
        fused_infer_attention_score(**bsnd(sparse_mode=9))


@given(
    keys=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    heads=st.sampled_from([(8, 2), (2, 2)]),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_atb_paged_attention(keys: list[int], heads: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    case = Case(seed, [1] * len(keys), keys, *heads, 64, dtype)
    key, value, table = case.pages(16, "BnBsH")
    caches = [cache.unflatten(2, (heads[1], 64)) for cache in (key, value)]
    query = torch.cat(case.q)
    out = torch.empty_like(query)
    lens = torch.tensor(keys, dtype=torch.int32)
    paged_attention(query, *caches, heads[1], heads[0], case.scale, table, lens, out)
    assert_close(out, np.concatenate(case.expected(0)), scale=2)
    with pytest.raises(RuntimeError, match="context_lens must be int32"):
        paged_attention(query, *caches, heads[1], heads[0], case.scale, table, lens.long(), out)
    with pytest.raises(RuntimeError, match="num_heads must be that of query"):
        paged_attention(query, *caches, heads[1], heads[0] + 2, case.scale, table, lens, out)
