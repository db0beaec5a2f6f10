# SPDX-License-Identifier: Apache-2.0
"""Calls around latent attention that break one limit each. Tables for test_every_limit.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vllm_ascend_patch.virtual_npu.kernels.fused_infer_attention import fused_infer_attention_score
from vllm_ascend_patch.virtual_npu.kernels.latent_context import attention_update, gather_pa_kv_cache

from .broken_calls import Legal, Table, half, i32, zeros

MASK = torch.ones(2048, 2048, dtype=torch.int8).triu(1)


def pages(blocks: int, block: int, device: str = "cpu") -> dict[str, Any]:
    """Both caches; on device meta they may be larger than memory."""
    key, rope = (torch.zeros(blocks, block, width, dtype=torch.float16, device=device) for width in (512, 64))
    return {"key": key, "value": key, "key_rope": rope, "block_size": block}


def queries(*lead: int) -> dict[str, Any]:
    """Query and rope part; the last number is that of the heads."""
    return {"query": half(*lead, 512), "query_rope": half(*lead, 64), "num_heads": lead[-1]}


def tables() -> Iterator[Table]:
    """Per operator a legal call, and changes with the text they must provoke."""
    common = {"block_table": i32(2, 1), "num_key_value_heads": 1, "actual_seq_lengths_kv": [3, 4]}
    yield (
        Legal(fused_infer_attention_score, **queries(2, 1, 2), **pages(2, 16), **common, input_layout="BSND"),
        [
            ({"key_rope": None}, "query_rope and key_rope go together, got no key_rope"),
            ({"query_rope": None}, "query_rope and key_rope go together, got no query_rope"),
            ({"query": zeros(2, 1, 2, 512)}, "query must be float16"),
            ({"key_rope": zeros(2, 16, 64)}, "key_rope must have the dtype of query"),
            ({"query_rope": half(2, 1, 64, 2).transpose(2, 3)}, "query_rope must be contiguous"),
            ({"key_rope": half(2, 64, 16).transpose(1, 2)}, "key_rope must be contiguous"),
            ({"key": half(2, 16, 576)[..., :512]}, "key must be contiguous"),
            ({"query": half(2, 2, 512)}, "query in layout BSND must have 4 dimension"),
            ({"query": half(2, 1, 2, 256)}, "with rope inputs the head size must be 512, got 256"),
            ({"query_rope": half(2, 1, 2, 32)}, "query_rope must have shape"),
            ({"num_heads": 4}, "number of heads must be that of the query's shape"),
            (queries(2, 1, 20), "the heads must be one of .* got 20"),
            ({"num_key_value_heads": 2}, "one key/value head"),
            ({"inner_precise": 2}, "inner_precise must be 0 or 1 with rope"),
            ({"softmax_lse_flag": True}, "log-sum-exp is not supported with head size 512"),
            ({"block_table": i32(2, 1).long()}, "block_table must be int32"),
            ({"key": half(2, 512)}, "a paged key must have 3 or 4 dimension"),
            ({"key_rope": half(2, 16, 32)}, "key_rope must have shape"),
            ({"value": half(2, 16, 64)}, "value must have shape"),
            (pages(2, 8), "block_size must be a multiple of 16 up to 1024, got 8"),
            (pages(2**18, 16, "meta"), "elements of a paged key must fit int32"),
            ({"block_size": 32}, "block_size must be that of the cache"),
            (queries(2, 17, 2), "at most 16 queries per request"),
            (queries(2, 2, 2), "several queries per request need sparse_mode 3"),
            ({"sparse_mode": 2, "atten_mask": MASK}, "sparse_mode must be 0, or 3"),
            ({"sparse_mode": 3}, "needs an atten_mask of exactly 2048x2048"),
            ({"atten_mask": MASK}, "sparse_mode 0 takes no atten_mask"),
            ({"sparse_mode": 3, "atten_mask": 1 - MASK}, "1 above the diagonal"),
        ],
    )
    yield (
        Legal(
            fused_infer_attention_score,
            **queries(2, 2),
            **pages(2, 16),
            **common,
            actual_seq_lengths=[1, 2],
            input_layout="TND",
        ),
        [
            ({"actual_seq_lengths": None}, "TND needs the query and the key/value lengths"),
            ({"actual_seq_lengths": [1, 3]}, "must be the 2 tokens"),
        ],
    )
    yield (
        Legal(
            gather_pa_kv_cache,
            key_cache=half(2, 16, 1, 64),
            value_cache=half(2, 16, 1, 32),
            block_tables=i32(2, 2),
            seq_lens=i32(2) + 3,
            key=half(6, 1, 64),
            value=half(6, 1, 32),
            seq_offset=i32(2),
        ),
        [
            ({"key_cache": zeros(2, 16, 1, 64, dtype=torch.float64)}, "key_cache must be"),
            ({"value": zeros(6, 1, 32)}, "value must have the dtype of key_cache"),
            ({"key_cache": half(2, 16, 64)}, "key_cache must have 4 dimension"),
            ({"value_cache": half(2, 16, 32)}, "value_cache must have 4 dimension"),
            ({"value_cache": half(3, 16, 1, 32)}, "both caches must have the same blocks"),
            ({"block_tables": i32(2)}, "block_tables must have 2 dimension"),
            ({"block_tables": half(2, 2)}, "block_tables must be int32 or int64"),
            ({"seq_lens": i32(3)}, r"seq_lens must have shape .2."),
            ({"is_seq_lens_cumsum": True}, r"seq_lens must have shape .3."),
            ({"seq_lens": i32(2) - 1}, "seq_lens must not be negative"),
            ({"key_cache": half(2, 16, 1, 128)[..., ::2]}, "key_cache must be contiguous"),
            ({"key": half(7, 1, 64)}, "key must have shape"),
            (
                {"key_cache": half(2, 16, 1, 75777), "key": half(6, 1, 75777)},
                "a token of key_cache must hold at most 151552 bytes",
            ),
            ({"seq_offset": half(2)}, "seq_offset must be int32 or int64"),
            ({"seq_offset": i32(1)}, "seq_offset must have shape"),
            ({"seq_offset": i32(2) + 3}, "multiples of the block size 16"),
            ({"seq_offset": i32(2) + 32}, "block_tables needs 3 columns"),
            ({"block_tables": i32(2, 2) + 2}, "block ids of request 0 must lie"),
        ],
    )
    yield (
        Legal(attention_update, lse=[zeros(3), zeros(3)], local_out=[half(3, 8), half(3, 8)], update_type=1),
        [
            ({"lse": [], "local_out": []}, "1 to 16 partial results"),
            ({"lse": [zeros(3)]}, "must have the same length"),
            ({"local_out": [half(3, 8).double()] * 2}, "local_out must be float32"),
            ({"local_out": [half(3, 1, 8)] * 2}, "local_out must have 2 dimension"),
            ({"local_out": [half(3, 12)] * 2}, "multiple of 8"),
            ({"lse": [zeros(3), half(3)]}, "lse must be float32"),
            ({"lse": [zeros(3), zeros(3, 1)]}, "lse must have shape"),
            ({"local_out": [half(3, 8), half(2, 8)]}, "local_out must have shape"),
            ({"local_out": [half(3, 8), zeros(3, 8)]}, "one dtype"),
            ({"local_out": [half(3, 8), half(8, 3).t()]}, "local_out must be contiguous"),
        ],
    )
