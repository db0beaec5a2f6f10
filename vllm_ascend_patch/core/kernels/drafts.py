# SPDX-License-Identifier: Apache-2.0
"""The kernels around a drafter's forwards in torch operators: its next positions and slots, and where it goes on from.

Parameter names are the upstream kernels'. Per-request values are ``[requests]``, or the same as a column, since
upstream's kernels read them through flat pointers. Nothing is read from the device.
"""

from __future__ import annotations

from typing import Any

import torch


def eagle_step_slot_mapping_metadata(
    positions_ptr: torch.Tensor,
    block_table_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    out_clamped_positions_ptr: torch.Tensor,
    out_slot_mapping_ptr: torch.Tensor,
    block_size: int,
    max_model_len: int,
    n_blocks_per_req: int,
    PAD_ID: int,
    batch_size: int,
    **_layout: Any,
) -> None:
    """One token further for every request: position, slot (``PAD_ID`` past the batch and past the longest context), and
    key length in place."""
    position = positions_ptr.view(-1)[:batch_size] + 1
    too_far = position >= max_model_len
    position = position.masked_fill(too_far, 0)
    block = torch.div(position, block_size, rounding_mode="floor").clamp_(max=n_blocks_per_req - 1)
    first = block_table_ptr[:batch_size].gather(1, block.long().unsqueeze(1)).squeeze(1).to(position.dtype) * block_size
    slots = out_slot_mapping_ptr.view(-1)
    slots[batch_size:].fill_(PAD_ID)
    slots[:batch_size] = (first + position % block_size).masked_fill_(too_far, PAD_ID)
    lens = seq_lens_ptr.view(-1)[:batch_size]
    lens.copy_((lens + 1).masked_fill_(too_far, 1).clamp_(max=max_model_len))
    out_clamped_positions_ptr.view(-1)[:batch_size] = position


def eagle_prepare_inputs_padded(
    cu_num_draft_tokens_ptr: torch.Tensor,
    valid_sampled_tokens_count_ptr: torch.Tensor,
    query_start_loc_gpu_ptr: torch.Tensor,
    token_indices_to_sample_ptr: torch.Tensor,
    num_rejected_tokens_gpu_ptr: torch.Tensor,
    num_reqs: int,
) -> None:
    """How many drafts of each request were refused, and the row of its last token that was not."""
    ends = cu_num_draft_tokens_ptr.view(-1)[:num_reqs]
    drafts = torch.diff(ends, prepend=ends.new_zeros(1))
    refused = (drafts + 1 - valid_sampled_tokens_count_ptr.view(-1)[:num_reqs]).masked_fill_(drafts <= 0, 0)
    num_rejected_tokens_gpu_ptr.view(-1)[:num_reqs] = refused
    token_indices_to_sample_ptr.view(-1)[:num_reqs] = query_start_loc_gpu_ptr.view(-1)[1 : num_reqs + 1] - 1 - refused


def eagle_prepare_next_token_padded(
    sampled_token_ids_ptr: torch.Tensor,
    discard_request_mask_ptr: torch.Tensor,
    backup_next_token_ids_ptr: torch.Tensor,
    next_token_ids_ptr: torch.Tensor,
    valid_sampled_tokens_count_ptr: torch.Tensor,
    vocab_size: int,
    num_sampled_tokens_per_req: int,
    num_reqs: int,
    **_layout: Any,
) -> None:
    """Each request's last sampled token, or its backup token if it sampled none or is discarded; and how many it
    sampled.

    ``sampled_token_ids_ptr`` is ``[requests, num_sampled_tokens_per_req]``, -1 where a draft was refused.
    """
    sampled = sampled_token_ids_ptr[:num_reqs, :num_sampled_tokens_per_req]
    valid = (sampled != -1) & (sampled < vocab_size) & ~discard_request_mask_ptr.view(-1, 1)[:num_reqs]
    columns = torch.arange(sampled.shape[1], device=sampled.device)
    last = torch.where(valid, columns, -1).amax(dim=1, keepdim=True)
    token = sampled.gather(1, last.clamp(min=0)).squeeze(1)
    backup = backup_next_token_ids_ptr.view(-1)[:num_reqs]
    next_token_ids_ptr.view(-1)[:num_reqs] = torch.where(last.squeeze(1) >= 0, token.to(backup.dtype), backup)
    valid_sampled_tokens_count_ptr.view(-1)[:num_reqs] = valid.sum(dim=1)
