# SPDX-License-Identifier: Apache-2.0
"""Slot mapping in releases whose ``BlockTable`` launches a Triton kernel directly, without vLLM's kernel registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PAD = -1  # vLLM's PAD_SLOT_ID


def compute_slot_mapping(
    original: Any, table: Any, num_reqs: int, query_start_loc: torch.Tensor, positions: torch.Tensor
) -> None:
    """Fill ``table.slot_mapping`` on the device; arguments as ``core/kernels/slot_mapping.py`` describes them."""
    from vllm_ascend_patch.core.kernels.slot_mapping import compute_slot_mapping as in_torch

    mode = getattr(table, "slot_mapping_mode", None)
    if mode is not None and mode.name == "NONE":
        return  # recurrent state, addressed by block
    in_torch(
        num_tokens=positions.shape[0],
        max_num_tokens=table.max_num_batched_tokens,
        query_start_loc_ptr=query_start_loc,
        positions_ptr=positions,
        block_table_ptr=table.block_table.gpu,
        block_table_stride=table.block_table.gpu.stride(0),
        slot_mapping_ptr=table.slot_mapping.gpu,
        KV_CACHE_BLOCK_SIZE=table.block_size,
        TOTAL_CP_WORLD_SIZE=getattr(table, "pcp_world_size", 1) * table.dcp_world_size,
        PAD_ID=_PAD,
    )
