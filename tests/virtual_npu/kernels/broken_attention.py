# SPDX-License-Identifier: Apache-2.0
"""Calls of fused infer attention that break one limit each. Tables for test_every_limit.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vllm_ascend_patch.virtual_npu.kernels.fused_infer_attention import (
    fused_infer_attention_score,
    fused_infer_attention_score_v2,
)
from vllm_ascend_patch.virtual_npu.kernels.fused_infer_out import fused_infer_attention_score_out

from .broken_calls import Legal, Table, half, i32, zeros


def meta(*shape: int) -> torch.Tensor:
    """A tensor too large to exist."""
    return torch.empty(*shape, dtype=torch.float16, device="meta")


def qkv(query: tuple[int, ...], key: tuple[int, ...]) -> dict[str, Any]:
    """Query, key and value by shape."""
    return {"query": half(*query), "key": half(*key), "value": half(*key)}


def tables() -> Iterator[Table]:
    """Per layout a legal call, and changes with the text they must provoke."""
    yield from _dense()
    yield from _tnd()
    yield from _paged()
    yield from _other_forms()


def _dense() -> Iterator[Table]:
    yield (
        Legal(
            fused_infer_attention_score,
            **qkv((2, 3, 2, 16), (2, 4, 2, 16)),
            num_heads=2,
            input_layout="BSND",
        ),
        [
            ({"query": half(3, 2, 16)}, "query in layout BSND must have 4 dimension"),
            ({"num_heads": 0, "num_key_value_heads": 2}, "the number of heads must be positive"),
            ({"inner_precise": 4}, "inner_precise must be 0 to 3"),
            ({"query": half(2, 1, 2, 16), "inner_precise": 2}, "inner_precise must be 0 or 1 here"),
            ({"key": half(2, 4, 32)}, "key without block_table .* must have 4 dimension"),
            ({"key": half(2, 4, 1, 16)}, "key must have 2 heads"),
            ({"key": half(2, 4, 2, 32)}, "head size of key must be that of query, 16"),
            ({"key": half(1, 4, 2, 16), "value": half(1, 4, 2, 16)}, "key must have the batch of query, 2"),
            ({"actual_seq_lengths_kv": [-1, 2]}, "key/value lengths must not be negative"),
            ({"atten_mask": zeros(2, 4).bool()}, "a 2-D atten_mask needs 3 rows"),
            ({"atten_mask": zeros(3, 1, 3, 4).bool()}, "atten_mask must be .1 or batch 2, 1, 3, 4"),
            (qkv((65537, 1, 2, 16), (65537, 1, 2, 16)), "batch must be at most 65536"),
            ({"input_layout": "BSH", "query": half(2, 3, 33)}, "the width of a BSH query must be a multiple of 2"),
        ],
    )


def _tnd() -> Iterator[Table]:
    many = list(range(1, 4098))
    yield (
        Legal(
            fused_infer_attention_score,
            **qkv((3, 2, 64), (4, 2, 64)),
            actual_seq_lengths=[1, 3],
            actual_seq_lengths_kv=[2, 4],
            num_heads=2,
            input_layout="TND",
        ),
        [
            (qkv((3, 2, 512), (4, 2, 512)), "head size 512 without query_rope"),
            (qkv((3, 2, 192), (4, 1, 192)) | {"num_key_value_heads": 1}, "value head size 192 excludes GQA"),
            ({"value": half(5, 2, 64)}, "key and value must have the same tokens"),
            (
                qkv((4097, 2, 64), (4097, 2, 64)) | {"actual_seq_lengths": many, "actual_seq_lengths_kv": many},
                "TND takes at most 4096 requests",
            ),
            ({"actual_seq_lengths_kv": [2, 3]}, "cumulative TND key/value lengths must be the 4 tokens"),
        ],
    )


def _paged() -> Iterator[Table]:
    yield (
        Legal(
            fused_infer_attention_score,
            **qkv((2, 2, 1, 64), (3, 32, 128)),
            block_table=i32(2, 1),
            block_size=32,
            actual_seq_lengths_kv=[3, 4],
            num_heads=2,
            input_layout="BNSD",
        ),
        [
            ({"block_table": i32(2)}, "block_table must have 2 dimension"),
            ({"key": half(3, 32)}, "a paged key must have 3 or 4 dimension"),
            ({"value": half(3, 32, 2, 64)}, "a paged value must have 3 dimension"),
            ({"key": half(3, 32, 64)}, "a row of the paged key must hold 128 elements"),
            ({"value": half(2, 32, 128)}, "paged key and value must have the same blocks"),
            ({"key": half(3, 2, 32, 32), "value": half(3, 2, 32, 64)}, "key must have shape"),
            ({"key": half(3, 2, 32, 64), "value": half(3, 1, 32, 64)}, "value must have shape"),
            ({"actual_seq_lengths_kv": [-3, 4]}, "key/value lengths must not be negative"),
            ({"key": meta(2**19, 32, 128), "value": meta(2**19, 32, 128)}, "elements of a paged key must fit int32"),
            (
                qkv((2, 256, 1, 512), (1, 32, 256 * 512)) | {"num_heads": 256},
                "kv_heads . head size must be at most 65535",
            ),
        ],
    )


def _brain(shape: tuple[int, ...]) -> dict[str, Any]:
    return {name: zeros(*shape).bfloat16() for name in ("query", "key", "value")}


def _out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **arguments: Any) -> None:
    fused_infer_attention_score_out(query, key, value, **arguments)


def _other_forms() -> Iterator[Table]:
    yield (
        Legal(
            fused_infer_attention_score_v2,
            **_brain((3, 2, 64)),
            actual_seq_qlen=[3],
            actual_seq_kvlen=[3],
            input_layout="TND",
            num_query_heads=2,
            learnable_sink=zeros(2).bfloat16(),
        ),
        [
            ({"out_dtype": 5}, "argument out_dtype is not modelled"),
            ({"learnable_sink": zeros(2)}, "learnable_sink must be bfloat16"),
            ({"learnable_sink": zeros(3).bfloat16()}, "learnable_sink must have shape"),
            ({"learnable_sink": zeros(4).bfloat16()[::2]}, "learnable_sink must be contiguous"),
            ({"input_layout": "BSND"}, "learnable_sink needs layout TND"),
            (qkv((3, 2, 64), (3, 2, 64)), "query beside learnable_sink must be bfloat16"),
            (_brain((3, 2, 256)), "head sizes beside learnable_sink"),
            ({"inner_precise": 1}, "inner_precise beside learnable_sink must be 0"),
        ],
    )
    yield (
        Legal(
            _out,
            **qkv((1, 3, 2, 16), (1, 3, 2, 16)),
            num_heads=2,
            input_layout="BSND",
            softmax_lse_flag=True,
            out=[half(1, 3, 2, 16), zeros(1, 2, 3, 1)],
        ),
        [
            ({"out": [half(1, 3, 2, 8), zeros(1, 2, 3, 1)]}, r"out.0. must have shape"),
            ({"out": [zeros(1, 3, 2, 16), zeros(1, 2, 3, 1)]}, r"out.0. must be torch.float16"),
            ({"out": [half(1, 3, 2, 16), zeros(1)]}, r"out.1. must have shape"),
            ({"out": [half(1, 3, 2, 16)]}, "out must be the attention output and the log-sum-exp"),
        ],
    )
