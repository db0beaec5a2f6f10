# SPDX-License-Identifier: Apache-2.0
"""Kernels of model runner V2 for a step in which every request decodes one token, which the host knows.

They write what their namesakes in ``step_inputs.py`` and ``request_tables.py`` write then, in half as many operators:
request ``i`` has token ``i`` and row ``i`` of the logits, none is inside its prompt, all are sampled from and nothing is
rejected. Parameters are as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def prepare_pos_seq_lens(
    pos_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Positions of the step's tokens, and context lengths, 0 behind the step's requests."""
    requests = idx_mapping_ptr.shape[0]
    computed = num_computed_tokens_ptr[idx_mapping_ptr]
    pos_ptr[:requests].copy_(computed)
    torch.add(computed, 1, out=seq_lens_ptr[:requests])
    seq_lens_ptr[requests:].zero_()


def combine_sampled_and_draft_tokens(
    input_ids_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    logits_indices_ptr: torch.Tensor,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
    **_: Any,
) -> None:
    """The token that each request sampled last, and the rows whose logits are sampled from: all."""
    if NUM_NEW_SAMPLED_TOKENS != 1:
        raise NotImplementedError("models that sample no token of their own in a step are not supported on Ascend NPUs")
    requests = idx_mapping_ptr.shape[0]
    input_ids_ptr[:requests].copy_(last_sampled_tokens_ptr.view(-1)[idx_mapping_ptr])
    logits_indices_ptr.copy_(query_start_loc_ptr[:requests])


def compute_slot_mappings(
    idx_mapping: torch.Tensor,
    pos: torch.Tensor,
    block_table_ptrs: Sequence[torch.Tensor],
    block_sizes: torch.Tensor,
    slot_mapping_enabled: torch.Tensor,
    slot_mappings_ptr: torch.Tensor,
    CP_SIZE: int,
    PAD_ID: int,
    **_: Any,
) -> None:
    """Slots of the step's tokens; ``PAD_ID`` behind them and for groups that are switched off."""
    if CP_SIZE != 1:
        raise NotImplementedError("slot mapping for context parallelism is not supported on Ascend NPUs by this port")
    requests = idx_mapping.shape[0]
    slot_mappings_ptr[:, requests:].fill_(PAD_ID)
    position = pos[:requests]
    for group, table in enumerate(block_table_ptrs):
        size = block_sizes[group]
        index = torch.div(position, size, rounding_mode="floor")
        slot = torch.addcmul(position, table[idx_mapping, index] - index, size)
        slot_mappings_ptr[group, :requests] = torch.where(slot_mapping_enabled[group], slot, PAD_ID)


def get_num_sampled_and_rejected(num_rejected_ptr: torch.Tensor, **_: Any) -> None:
    """The counts of what was sampled stay as they come, all 1; those of what was rejected are 0."""
    num_rejected_ptr.zero_()


def post_update(
    idx_mapping_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor | None,
    sampled_tokens_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor | None,
    all_token_ids_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Book a token for each request; one more is computed, unless no ``query_start_loc_ptr`` is given."""
    request, token = idx_mapping_ptr, sampled_tokens_ptr[:, 0]
    last_sampled_tokens_ptr.view(-1)[request] = token
    place = total_len_ptr[request].long().clamp_(max=all_token_ids_ptr.shape[1] - 1)
    all_token_ids_ptr[request, place] = token.to(all_token_ids_ptr.dtype)
    if output_bin_counts_ptr is not None:
        ones = num_sampled_ptr.to(output_bin_counts_ptr.dtype)
        output_bin_counts_ptr.index_put_((request, token), ones, accumulate=True)
    total_len_ptr.index_add_(0, request, num_sampled_ptr)
    if query_start_loc_ptr is not None:
        num_computed_tokens_ptr.index_add_(0, request, num_sampled_ptr)
