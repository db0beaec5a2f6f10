# SPDX-License-Identifier: Apache-2.0
"""Slot mapping without Triton: the one Triton kernel on vLLM's plain decode path, in torch operators.

Registered through vLLM's own registry of kernel overrides, so nothing is patched.
"""

from __future__ import annotations

import torch

_KERNEL = "vllm.v1.worker.block_table.ComputeSlotMappingKernel.kernel"


def register() -> None:
    """Give vLLM the override; called by vLLM while a model runner is built."""
    from vllm.triton_utils.dispatcher import register_kernels

    register_kernels({_KERNEL: compute_slot_mapping})


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
    TOTAL_CP_RANK: int,
    CP_KV_CACHE_INTERLEAVE_SIZE: int,
    PAD_ID: int,
    BLOCK_SIZE: int,
) -> None:
    """Write ``slot_mapping_ptr[max_num_tokens]``: block x block size + offset per token, ``PAD_ID`` past ``num_tokens``.

    Args:
        query_start_loc_ptr: int32 ``[requests + 1]``, where each request's tokens start; its tail may repeat.
        positions_ptr: int64 ``[num_tokens]``, each token's position in its request.
        block_table_ptr: int32 ``[requests, blocks per request]``.

    The parameter names are the upstream kernel's: vLLM passes launch arguments by name. ``BLOCK_SIZE`` is the Triton
    tile and means nothing here.
    """
    if TOTAL_CP_WORLD_SIZE != 1:
        raise NotImplementedError("slot mapping for context parallelism is not supported on Ascend NPUs by this port")
    slot_mapping_ptr[num_tokens:max_num_tokens].fill_(PAD_ID)
    if num_tokens == 0:
        return
    positions = positions_ptr[:num_tokens]
    tokens = torch.arange(num_tokens, dtype=query_start_loc_ptr.dtype, device=query_start_loc_ptr.device)
    request = torch.searchsorted(query_start_loc_ptr[1:], tokens, right=True)
    block_index = torch.div(positions, KV_CACHE_BLOCK_SIZE, rounding_mode="floor")
    blocks = block_table_ptr.view(-1)[request * block_table_stride + block_index]
    slot_mapping_ptr[:num_tokens] = blocks * KV_CACHE_BLOCK_SIZE + (positions - block_index * KV_CACHE_BLOCK_SIZE)
