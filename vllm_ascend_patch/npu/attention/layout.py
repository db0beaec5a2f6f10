# SPDX-License-Identifier: Apache-2.0
"""Which layout of ``npu_fused_infer_attention_score`` serves a model, and how vLLM's KV pages look to the operator.

Pure functions on sizes and tensors; limits are those of the vendor's operator documentation for A2 and A3. No vLLM here.
"""

from __future__ import annotations

import enum

import torch

from vllm_ascend_patch.core.model_support import heads_problem
from vllm_ascend_patch.core.operator_limits import KERNEL_BLOCK, TND_HEAD_SIZE

# Paged attention with more than one query token per request needs a block size in 128..512 that is a multiple of 128;
# 128 also satisfies the single-token and TND rules (torch_npu operator documentation).
BLOCK_SIZE = KERNEL_BLOCK
MASK_SIZE = 2048  # causal modes take a compressed mask of exactly this size, whatever the sequence length


class QueryLayout(enum.Enum):
    """How queries are handed to the operator."""

    TND = "TND"
    """All tokens of all requests in one call, ``[tokens, heads, head size]``."""
    BSND = "BSND"
    """One call per group of requests with equal query lengths, ``[requests, query length, heads, head size]``."""


def query_layout(head_size: int) -> QueryLayout:
    """The layout that every CANN takes ``head_size`` in, with grouped-query attention and paged KV (``forms.py`` asks)."""
    return QueryLayout.TND if head_size == TND_HEAD_SIZE else QueryLayout.BSND


def check_head_size(head_size: int, num_heads: int, num_kv_heads: int) -> None:
    """Raise ``ValueError`` naming the limit unless the operator serves these heads (counts are per rank)."""
    problem = heads_problem(head_size, num_heads, num_kv_heads)
    if problem is not None:
        raise ValueError(problem)


def split_pages(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """View vLLM's KV cache as the key cache and the value cache that the operators take; no copy.

    Args:
        kv_cache: ``[blocks, kv heads, block size, 2 x head size]`` as a logical shape; each block is one contiguous
            page in memory, whatever the strides inside it say.

    Returns:
        Key and value cache, each ``[2 x blocks - 1, block size, kv heads, head size]`` and contiguous: a page is cut in
        two halves, keys first. Block ``b`` is found at index ``2 b`` of both (the value view starts half a page later).
    """
    blocks, kv_heads, block_size, row = kv_cache.shape
    head_size = row // 2
    half_page = block_size * kv_heads * head_size
    if kv_cache.stride(0) != 2 * half_page:
        raise ValueError(
            f"KV pages are not contiguous: a block of {2 * half_page} elements has stride {kv_cache.stride(0)}"
        )
    size = (2 * blocks - 1, block_size, kv_heads, head_size)
    stride = (half_page, kv_heads * head_size, head_size, 1)
    start = kv_cache.storage_offset()
    return (
        kv_cache.as_strided(size, stride, start),
        kv_cache.as_strided(size, stride, start + half_page),
    )


def half_page_slots(slot_mapping: torch.Tensor, block_size: int) -> torch.Tensor:
    """Slots of ``split_pages``' views for vLLM's slots ``block x block size + offset`` (any integer dtype)."""
    return slot_mapping + torch.div(slot_mapping, block_size, rounding_mode="floor") * block_size


def null_block_slots(rows: int, block_size: int, device: torch.device) -> torch.Tensor:
    """int64 slots of ``split_pages``' views for rows that belong to no request: the operator wants distinct slots and no -1.

    They lie in vLLM's block 0, which no request gets, so there are ``block_size`` of them. ``ValueError`` beyond.
    """
    if rows > block_size:
        raise ValueError(f"{rows} rows without a request need distinct slots of block 0, which has {block_size}")
    return torch.arange(rows, device=device)
