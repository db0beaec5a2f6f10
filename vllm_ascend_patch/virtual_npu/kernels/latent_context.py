# SPDX-License-Identifier: Apache-2.0
"""What chunked context of latent attention needs: ``npu_gather_pa_kv_cache`` and ``npu_attention_update``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from .kv_cache import CACHE_DTYPES
from .limits import (
    require,
    require_contiguous,
    require_dim,
    require_dtype,
    require_ids,
    require_shape,
    unsupported,
)

INTEGERS = (torch.int32, torch.int64)
MAX_TOKEN_BYTES = 148 * 1024
MAX_PARTIALS = 16
MAX_WIDTH = 512


def gather_pa_kv_cache(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    seq_offset: torch.Tensor | None = None,
    is_seq_lens_cumsum: bool = False,
) -> None:
    """Read a stretch of every request's rows out of both paged caches into dense tensors, request after request.

    Args:
        key_cache: ``[blocks, block_size, heads, D]`` in a plain format; value_cache likewise, with a D of its own.
        block_tables: ``[B, blocks per request]`` int32 or int64.
        seq_lens: ``[B]`` rows per request, or ``[B + 1]`` sums that start with 0 (is_seq_lens_cumsum).
        key: ``[rows, heads, D]``, written; value likewise. rows is the sum of the lengths.
        seq_offset: ``[B]`` first row of each request, a multiple of the block size; 0 without.
    """
    op = "npu_gather_pa_kv_cache"
    require_dtype(op, "key_cache", key_cache, CACHE_DTYPES)
    named = {"value_cache": value_cache, "key": key, "value": value}
    for name, tensor in named.items():
        require(op, tensor.dtype == key_cache.dtype, f"{name} must have the dtype of key_cache", tensor.dtype)
    require_dim(op, "key_cache", key_cache, 4)
    require_dim(op, "value_cache", value_cache, 4)
    require_dim(op, "block_tables", block_tables, 2)
    batch, columns = block_tables.shape
    block = key_cache.shape[1]
    require(
        op, value_cache.shape[:2] == key_cache.shape[:2], "both caches must have the same blocks", value_cache.shape
    )
    for name, tensor in (("block_tables", block_tables), ("seq_lens", seq_lens)):
        require_dtype(op, name, tensor, INTEGERS)
    require_shape(op, "seq_lens", seq_lens, (batch + 1,) if is_seq_lens_cumsum else (batch,))
    require_contiguous(
        op, key_cache=key_cache, **named, block_tables=block_tables, seq_lens=seq_lens, seq_offset=seq_offset
    )
    given = seq_lens.tolist()
    lengths = [after - before for before, after in pairwise(given)] if is_seq_lens_cumsum else given
    require(op, min(lengths, default=0) >= 0, "seq_lens must not be negative (or sums that fall)", given)
    rows = sum(lengths)
    for name, dense, cache in (("key", key, key_cache), ("value", value, value_cache)):
        require_shape(op, name, dense, (rows, *cache.shape[2:]))
        size = cache.shape[2] * cache.shape[3] * cache.element_size()
        require(op, size <= MAX_TOKEN_BYTES, f"a token of {name}_cache must hold at most {MAX_TOKEN_BYTES} bytes", size)
    starts = [0] * batch
    if seq_offset is not None:
        require_dtype(op, "seq_offset", seq_offset, INTEGERS)
        require_shape(op, "seq_offset", seq_offset, (batch,))
        starts = seq_offset.tolist()
        aligned = all(start >= 0 and start % block == 0 for start in starts)
        require(op, aligned, f"seq_offset must be multiples of the block size {block}", starts)
    end = 0
    for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        first, last = start // block, -(-(start + length) // block)
        require(op, last <= columns, f"block_tables needs {last} columns for request {index}", columns)
        blocks = block_tables[index, first:last]
        require_ids(op, f"block ids of request {index}", blocks, key_cache.shape[0])
        for dense, cache in ((key, key_cache), (value, value_cache)):
            dense[end : end + length] = cache[blocks.long()].flatten(0, 1)[:length]
        end += length


def attention_update(
    lse: Sequence[torch.Tensor], local_out: Sequence[torch.Tensor], update_type: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge partial attention results over disjoint keys.

    Args:
        lse: 1 to 16 tensors ``[rows]`` float32, natural logarithms; -inf for a part without keys.
        local_out: as many tensors ``[rows, D]`` float32, fp16 or bf16; D a multiple of 8 from 8 to 512.
        update_type: 1 also returns the merged log-sum-exp; with 0 the second result stays unwritten.

    Returns:
        ``[rows, D]`` in the dtype of ``local_out``, and ``[rows]`` float32.
    """
    op = "npu_attention_update"
    require(op, 1 <= len(lse) <= MAX_PARTIALS, f"there must be 1 to {MAX_PARTIALS} partial results", len(lse))
    require(op, len(local_out) == len(lse), "lse and local_out must have the same length", len(local_out))
    if update_type not in (0, 1):
        raise unsupported(op, f"update_type {update_type}")
    require_dtype(op, "local_out", local_out[0], (torch.float32, torch.float16, torch.bfloat16))
    require_dim(op, "local_out", local_out[0], 2)
    rows, width = local_out[0].shape
    require(op, width % 8 == 0 and 8 <= width <= MAX_WIDTH, "D must be a multiple of 8 from 8 to 512", width)
    for sums, out in zip(lse, local_out, strict=True):
        require_dtype(op, "lse", sums, (torch.float32,))
        require_shape(op, "lse", sums, (rows,))
        require_shape(op, "local_out", out, (rows, width))
        require(op, out.dtype == local_out[0].dtype, "all of local_out must have one dtype", out.dtype)
        require_contiguous(op, lse=sums, local_out=out)
    total = torch.stack(tuple(lse)).logsumexp(0)
    merged = sum(out.float() * (sums - total).exp().unsqueeze(1) for sums, out in zip(lse, local_out, strict=True))
    assert isinstance(merged, torch.Tensor)
    return merged.to(local_out[0].dtype), total if update_type else torch.full_like(total, float("nan"))
