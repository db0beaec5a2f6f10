# SPDX-License-Identifier: Apache-2.0
"""``_npu_paged_attention`` (ATB): decode over a paged cache, one query per request, written into ``out``."""

from __future__ import annotations

import torch

from .attention_math import attend, gather_pages
from .limits import require, require_contiguous, require_dim, require_dtype, require_ids, require_shape


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    *,
    workspace: torch.Tensor | None = None,
) -> None:
    """Attend with one query per request.

    Args:
        query: ``[B, heads, D]`` fp16 or bf16.
        key_cache: ``[blocks, block_size, kv_heads, D]``, block_size a multiple of 16; value_cache likewise.
        block_table: int32 ``[B, blocks per request]``.
        context_lens: int32 ``[B]``, from host or device memory.
        out: like query; the result.
    """
    op = "_npu_paged_attention"
    require_dim(op, "query", query, 3)
    require_dtype(op, "query", query, (torch.float16, torch.bfloat16))
    batch, heads, size = query.shape
    require(op, heads == num_heads, f"num_heads must be that of query, {heads}", num_heads)
    require(op, num_kv_heads > 0 and heads % num_kv_heads == 0, f"num_kv_heads must divide {heads}", num_kv_heads)
    block = key_cache.shape[1]
    require(op, block % 16 == 0, "block_size must be a multiple of 16", block)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        require_dim(op, name, cache, 4)
        require_shape(op, name, cache, (key_cache.shape[0], block, num_kv_heads, cache.shape[3]))
        require(op, cache.dtype == query.dtype, f"{name} must have the dtype of query ({query.dtype})", cache.dtype)
    require(op, key_cache.shape[3] == size, f"head size of key_cache must be that of query, {size}", key_cache.shape[3])
    require_contiguous(op, query=query, key_cache=key_cache, value_cache=value_cache)
    require_dtype(op, "block_table", block_table, (torch.int32,))
    require_dim(op, "block_table", block_table, 2)
    require(op, block_table.shape[0] == batch, f"block_table must have {batch} rows", block_table.shape[0])
    require_dtype(op, "context_lens", context_lens, (torch.int32,))
    require_shape(op, "context_lens", context_lens, (batch,))
    require_shape(op, "out", out, (batch, heads, value_cache.shape[3]))
    require(op, out.dtype == query.dtype, f"out must have the dtype of query ({query.dtype})", out.dtype)
    most = block_table.shape[1] * block
    for index, length in enumerate(context_lens.tolist()):
        require(op, 0 <= length <= most, f"context_lens must be in [0, {most}]", length)
        blocks = block_table[index, : -(-length // block)]
        require_ids(op, f"block ids of request {index}", blocks, key_cache.shape[0])
        key, value = (gather_pages(cache, blocks, length) for cache in (key_cache, value_cache))
        out[index] = attend(query[index : index + 1], key, value, scale_value, None)[0][0].to(out.dtype)
