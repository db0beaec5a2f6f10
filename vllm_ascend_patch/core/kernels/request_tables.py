# SPDX-License-Identifier: Apache-2.0
"""The kernels of model runner V2 that keep its tables by request: staged writes, block tables of a step, slots of its
tokens.

Parameter names are the upstream kernels'. Where those take addresses of tensors they get the tensors themselves here
(``seams/port/runner_v2.py``). All shapes come from the host, nothing is read from the device. How a launch is tiled,
and what only context parallelism needs, ends in ``**_``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def apply_write(
    output_ptr: torch.Tensor | Sequence[torch.Tensor],
    output_stride: int | torch.Tensor,
    write_indices_ptr: torch.Tensor,
    write_starts_ptr: torch.Tensor,
    write_contents_ptr: torch.Tensor,
    write_cu_lens_ptr: torch.Tensor,
    write_group_ids_ptr: torch.Tensor | None = None,
    **_: Any,
) -> None:
    """Write piece ``w`` of the contents (``[cu[w-1], cu[w])``, ``cu`` inclusive running sums) into row ``indices[w]``
    of the output, from column ``starts[w]`` on.

    With several outputs, one per group of KV caches, ``output_stride`` is ``[groups]`` and ``group_ids[w]`` says which.
    """
    ends = write_cu_lens_ptr
    element = torch.arange(write_contents_ptr.shape[0], dtype=ends.dtype, device=ends.device)
    piece = torch.searchsorted(ends, element, right=True)
    stride = output_stride if isinstance(output_stride, int) else output_stride[write_group_ids_ptr]
    first = write_indices_ptr.long() * stride + write_starts_ptr - F.pad(ends[:-1], (1, 0))
    cell = first[piece] + element
    if isinstance(output_ptr, torch.Tensor):
        output_ptr.view(-1)[cell] = write_contents_ptr
        return
    assert write_group_ids_ptr is not None
    group = write_group_ids_ptr[piece]
    for number, table in enumerate(output_ptr):
        # Differences are added, so that elements of other groups add nothing to cell 0 instead of overwriting it.
        cells, mine = table.view(-1), group == number
        at = torch.where(mine, cell, 0)
        cells.index_add_(0, at, torch.where(mine, write_contents_ptr - cells[at], 0))


def gather_block_tables(
    batch_idx_to_req_idx: torch.Tensor,
    src_block_table_ptrs: Sequence[torch.Tensor],
    dst_block_table_ptrs: Sequence[torch.Tensor],
    num_reqs: int,
    num_computed_tokens_ptr: torch.Tensor | None = None,
    sliding_window_reach_ptr: torch.Tensor | None = None,
    block_sizes_ptr: torch.Tensor | None = None,
    MASK_SLIDING_WINDOW: bool = False,
    **_: Any,
) -> None:
    """Copy the requests' rows (``[max requests, blocks]``) into the step's table, and clear the rows behind them.

    Whole rows: nobody reads a row behind its request's blocks. With ``MASK_SLIDING_WINDOW`` blocks that lie wholly
    before a request's next token less its group's reach are vLLM's null block; a reach of 0 leaves the group alone.
    """
    for rows, table in zip(src_block_table_ptrs, dst_block_table_ptrs, strict=True):
        torch.index_select(rows, 0, batch_idx_to_req_idx, out=table[:num_reqs])
        table[num_reqs:].zero_()
    if not MASK_SLIDING_WINDOW:
        return
    assert num_computed_tokens_ptr is not None
    assert sliding_window_reach_ptr is not None
    assert block_sizes_ptr is not None
    first = num_computed_tokens_ptr[batch_idx_to_req_idx]
    reach = sliding_window_reach_ptr.unsqueeze(1)
    behind = torch.where(reach > 0, (first - reach).clamp_(min=0), 0)
    unread = torch.div(behind, block_sizes_ptr.unsqueeze(1), rounding_mode="floor")  # [groups, requests]
    for group, table in enumerate(dst_block_table_ptrs):
        column = torch.arange(table.shape[1], device=table.device)
        table[:num_reqs].masked_fill_(column < unread[group].unsqueeze(1), 0)


def compute_slot_mappings(
    idx_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    pos: torch.Tensor,
    block_table_ptrs: Sequence[torch.Tensor],
    block_sizes: torch.Tensor,
    slot_mapping_enabled: torch.Tensor,
    slot_mappings_ptr: torch.Tensor,
    CP_SIZE: int,
    PAD_ID: int,
    **_: Any,
) -> None:
    """Fill ``slot_mappings_ptr[groups, max tokens]``: block x block size + offset per token of ``pos``; ``PAD_ID`` for
    what belongs to no request (``idx_mapping`` -1, or behind the last token) and for groups that are switched off."""
    if CP_SIZE != 1:
        raise NotImplementedError("slot mapping for context parallelism is not supported on Ascend NPUs by this port")
    tokens = pos.shape[0]
    slot_mappings_ptr[:, tokens:].fill_(PAD_ID)
    request = _by_token(F.pad(idx_mapping, (0, 1), value=-1), query_start_loc, idx_mapping.shape[0], tokens)
    real = request >= 0
    for group, table in enumerate(block_table_ptrs):
        size = block_sizes[group]
        index = torch.div(pos, size, rounding_mode="floor")
        slot = (table[request, index] - index) * size + pos
        slot_mappings_ptr[group, :tokens] = torch.where(real & slot_mapping_enabled[group], slot, PAD_ID)


def _by_token(values: torch.Tensor, query_start_loc: torch.Tensor, num_reqs: int, tokens: int) -> torch.Tensor:
    """``values[request]`` for each token's request; the last of ``values`` for tokens behind the last request's."""
    token = torch.arange(tokens, dtype=query_start_loc.dtype, device=query_start_loc.device)
    return values[torch.searchsorted(query_start_loc[1 : num_reqs + 1], token, right=True)]
