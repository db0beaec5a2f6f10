# SPDX-License-Identifier: Apache-2.0
"""Slot mapping without Triton: the one Triton kernel on vLLM's plain decode path, in torch operators.

Registered by ``npu/kernel_overrides.py`` where vLLM has a registry of kernel overrides; in releases without,
``seams/port/block_table.py`` calls it.
"""

from __future__ import annotations

from typing import Any

import torch


def compute_slot_mapping(
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc_ptr: torch.Tensor,
    positions_ptr: torch.Tensor,
    block_table_ptr: torch.Tensor,
    block_table_stride: int,
    slot_mapping_ptr: torch.Tensor,
    KV_CACHE_BLOCK_SIZE: int,
    TOTAL_CP_WORLD_SIZE: int,
    PAD_ID: int,
    block_size: int | None = None,
    **_unused: Any,
) -> None:
    """Write ``slot_mapping_ptr[max_num_tokens]``: block x block size + offset per token, ``PAD_ID`` past
    ``num_tokens``.

    Args:
        query_start_loc_ptr: int32 ``[requests + 1]``, where each request's tokens start; its tail may repeat.
        positions_ptr: int64 ``[num_tokens]``, each token's position in its request.
        block_table_ptr: int32 ``[requests, blocks per request]``.
        block_size: tokens per entry of the block table, where that differs from ``KV_CACHE_BLOCK_SIZE``.

    The parameter names are the upstream kernel's. Those not named here say how the Triton kernel tiles, or how context
    parallelism interleaves.
    """
    if TOTAL_CP_WORLD_SIZE != 1:
        raise NotImplementedError("slot mapping for context parallelism is not supported on Ascend NPUs by this port")
    slot_mapping_ptr[num_tokens:max_num_tokens].fill_(PAD_ID)
    if num_tokens == 0:
        return
    size = block_size or KV_CACHE_BLOCK_SIZE
    positions = positions_ptr[:num_tokens]
    tokens = torch.arange(num_tokens, dtype=query_start_loc_ptr.dtype, device=query_start_loc_ptr.device)
    request = torch.searchsorted(query_start_loc_ptr[1:], tokens, right=True)
    block_index = torch.div(positions, size, rounding_mode="floor")
    blocks = block_table_ptr.view(-1)[request * block_table_stride + block_index]
    slot_mapping_ptr[:num_tokens] = blocks * size + (positions - block_index * size)
