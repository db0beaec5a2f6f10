# SPDX-License-Identifier: Apache-2.0
"""The kernels of model runner V2 around a forward: token ids, positions and lengths before it, what was sampled after
it.

Parameter names are the upstream kernels'. ``R`` is the most requests that the runner holds, ``n`` those of the step, in
batch order; ``idx_mapping_ptr`` ``[n]`` has their rows in tensors of ``R`` rows. ``query_start_loc_ptr`` is ``[n + 1]``
or longer: where each request's tokens start. ``cu_num_logits_ptr`` ``[n + 1]``: where its rows of logits do, one for each
draft and one more. All shapes come from the host, nothing is read from the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def prepare_prefill_inputs(
    input_ids_ptr: torch.Tensor,
    next_prefill_tokens_ptr: torch.Tensor,
    num_lookahead: int,
    idx_mapping_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    all_token_ids_ptr: torch.Tensor,
    prefill_lens_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Token ids of the requests that are inside their prompt, and the tokens that follow the step's: ``input_ids_ptr``
    ``[max tokens]``, ``next_prefill_tokens_ptr`` ``[lookahead, R]``, out of ``all_token_ids_ptr`` ``[R, longest
    request]``."""
    request = idx_mapping_ptr
    starts, ends = _bounds(query_start_loc_ptr, request.shape[0])
    computed, length = num_computed_tokens_ptr[request], prefill_lens_ptr[request]
    prefilling = computed < length
    token = _tokens(input_ids_ptr, ends)
    owner = torch.searchsorted(ends, token, right=True)
    row = F.pad(request, (0, 1))[owner]
    column = (token + F.pad(computed - starts, (0, 1))[owner]).clamp_(min=0, max=all_token_ids_ptr.shape[1] - 1)
    ids = all_token_ids_ptr[row, column]
    input_ids_ptr.copy_(torch.where(F.pad(prefilling, (0, 1))[owner], ids, input_ids_ptr))
    after = computed + (ends - starts)
    for ahead in range(num_lookahead):
        position = after + ahead
        ids = all_token_ids_ptr[request, position.clamp(max=all_token_ids_ptr.shape[1] - 1)]
        ids = torch.where(position < length, ids, 0)
        following = next_prefill_tokens_ptr[ahead]
        following[request] = torch.where(prefilling, ids, following[request])


def prepare_pos_seq_lens(
    pos_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Positions of the step's tokens (``pos_ptr`` ``[max tokens]``, those behind them as they were), and context
    lengths (``seq_lens_ptr`` ``[R]``, 0 behind the step's requests)."""
    requests = idx_mapping_ptr.shape[0]
    starts, ends = _bounds(query_start_loc_ptr, requests)
    first = num_computed_tokens_ptr[idx_mapping_ptr] - starts
    torch.add(first, ends, out=seq_lens_ptr[:requests])
    seq_lens_ptr[requests:].zero_()
    token = _tokens(pos_ptr, ends)
    owner = torch.searchsorted(ends, token, right=True)
    position = token + F.pad(first, (0, 1))[owner]
    pos_ptr.copy_(torch.where(owner < requests, position, pos_ptr))


def combine_sampled_and_draft_tokens(
    input_ids_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
    draft_tokens_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    logits_indices_ptr: torch.Tensor,
    BLOCK_SIZE: int,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
    **_: Any,
) -> None:
    """The rows whose logits each request is sampled from, its last ones, and in those rows the token that was sampled last
    and its drafts (``draft_tokens_ptr`` ``[R, K]``), for requests past their prompt."""
    if NUM_NEW_SAMPLED_TOKENS != 1:
        raise NotImplementedError("models that sample no token of their own in a step are not supported on Ascend NPUs")
    requests = idx_mapping_ptr.shape[0]
    decoding = seq_lens_ptr[:requests] > prefill_len_ptr[idx_mapping_ptr]
    sampled = last_sampled_tokens_ptr.view(-1)[idx_mapping_ptr].to(input_ids_ptr.dtype)
    ends = query_start_loc_ptr[1 : requests + 1].long()
    if BLOCK_SIZE == 1:
        rows = ends - 1
        input_ids_ptr[rows] = torch.where(decoding, sampled, input_ids_ptr[rows])
        logits_indices_ptr.copy_(rows)
        return
    owner, place = _rows_of_logits(cu_num_logits_ptr, requests, logits_indices_ptr.shape[0])
    logits = cu_num_logits_ptr[1 : requests + 1] - cu_num_logits_ptr[:requests]
    rows = (ends - logits)[owner] + place
    logits_indices_ptr.copy_(rows)
    # The first row may be a prompt's last token, which stays.
    first = decoding & (seq_lens_ptr[:requests] - logits >= prefill_len_ptr[idx_mapping_ptr])
    draft = draft_tokens_ptr[idx_mapping_ptr[owner], (place - 1).clamp_(min=0)].to(input_ids_ptr.dtype)
    token = torch.where(place == 0, sampled[owner], draft)
    written = torch.where(place == 0, first[owner], decoding[owner])
    input_ids_ptr[rows] = torch.where(written, token, input_ids_ptr[rows])


def expand_idx_mapping(
    idx_mapping_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Whose each row of logits is, and which of that request's."""
    owner, place = _rows_of_logits(cu_num_logits_ptr, idx_mapping_ptr.shape[0], expanded_idx_mapping_ptr.shape[0])
    expanded_idx_mapping_ptr.copy_(idx_mapping_ptr[owner])
    expanded_local_pos_ptr.copy_(place)


def _rows_of_logits(cu_num_logits: torch.Tensor, requests: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of logits the request in the batch, and the row's place among the request's."""
    row = torch.arange(rows, dtype=cu_num_logits.dtype, device=cu_num_logits.device)
    owner = torch.searchsorted(cu_num_logits[1 : requests + 1], row, right=True)
    return owner, row - cu_num_logits[owner]


def get_num_sampled_and_rejected(
    num_sampled_ptr: torch.Tensor,
    num_rejected_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
) -> None:
    """Zero both ``[n]`` for requests that stay inside their prompt; else what of a request's logits was not sampled
    from is rejected."""
    requests = idx_mapping_ptr.shape[0]
    inside = seq_lens_ptr[:requests] < prefill_len_ptr[idx_mapping_ptr]
    num_sampled_ptr.masked_fill_(inside, 0)
    logits = cu_num_logits_ptr[1 : requests + 1] - cu_num_logits_ptr[:requests]
    num_rejected_ptr.copy_((logits - num_sampled_ptr).masked_fill_(inside, 0))


def post_update(
    idx_mapping_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor | None,
    sampled_tokens_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    num_rejected_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor | None,
    all_token_ids_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Book what was sampled (``sampled_tokens_ptr`` ``[n, k]``, of which a request has its first ``num_sampled``): last
    token, token ids, lengths, how often each token was generated (``output_bin_counts_ptr`` ``[R, vocabulary]``),
    computed tokens.

    The requests of a step are distinct rows, so nothing is written twice.
    """
    request = idx_mapping_ptr
    total = total_len_ptr[request].long()
    last = last_sampled_tokens_ptr.view(-1)
    longest = all_token_ids_ptr.shape[1] - 1
    for column in range(sampled_tokens_ptr.shape[1]):
        token = sampled_tokens_ptr[:, column]
        live = num_sampled_ptr > column
        if column:  # a request's first token is always there, what it has not of the others was never written
            token = torch.where(live, token, 0)
        last[request] = torch.where(live, token, last[request])
        place = (total + column).clamp_(max=longest)
        ids = torch.where(live, token.to(all_token_ids_ptr.dtype), all_token_ids_ptr[request, place])
        all_token_ids_ptr[request, place] = ids
        if output_bin_counts_ptr is not None:
            output_bin_counts_ptr.index_put_((request, token), live.to(output_bin_counts_ptr.dtype), accumulate=True)
    total_len_ptr.index_add_(0, request, num_sampled_ptr)
    computed = -num_rejected_ptr
    if query_start_loc_ptr is not None:
        starts, ends = _bounds(query_start_loc_ptr, request.shape[0])
        computed = (ends - starts) + computed
    num_computed_tokens_ptr.index_add_(0, request, computed)


def _bounds(query_start_loc: torch.Tensor, requests: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First token of each request, and the one behind its last."""
    return query_start_loc[:requests], query_start_loc[1 : requests + 1]


def _tokens(buffer: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(buffer.shape[0], dtype=like.dtype, device=like.device)
