# SPDX-License-Identifier: Apache-2.0
"""The kernels of model runner V2's drafters: the inputs of their forwards, and drafts out of a request's own tokens.

Parameter names are the upstream kernels'. A drafter's first forward runs the step's tokens, one to the left, behind them the
token that was sampled; each later one a token per request. Nothing is read from the device, all shapes come from the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def prepare_prefill_inputs(
    last_token_indices_ptr: torch.Tensor,
    draft_current_step_ptr: torch.Tensor,
    draft_input_ids_ptr: torch.Tensor,
    draft_positions_ptr: torch.Tensor,
    draft_query_start_loc_ptr: torch.Tensor,
    draft_seq_lens_ptr: torch.Tensor,
    target_input_ids_ptr: torch.Tensor,
    target_positions_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    last_sampled_ptr: torch.Tensor,
    next_prefill_tokens_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    num_rejected_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    max_num_reqs: int,
    **_: Any,
) -> None:
    """Token ids, positions, bounds and lengths of the first forward; refused drafts' rows are left as they were.

    Buffers of the drafter are longer than the step: bounds and lengths are padded for all ``max_num_reqs`` requests.
    """
    request, requests = idx_mapping_ptr, idx_mapping_ptr.shape[0]
    starts, ends = query_start_loc_ptr[:requests], query_start_loc_ptr[1 : requests + 1]
    kept = ends - starts - num_rejected_ptr[:requests]
    following = torch.where(
        num_sampled_ptr[:requests] > 0,
        last_sampled_ptr.view(-1)[request].to(torch.int32),
        next_prefill_tokens_ptr.view(-1)[request],
    )
    rows = min(target_input_ids_ptr.shape[0], draft_input_ids_ptr.shape[0])
    token = torch.arange(rows, dtype=ends.dtype, device=ends.device)
    owner = torch.searchsorted(ends, token, right=True)
    place = token - F.pad(starts, (0, 1))[owner]
    length = F.pad(kept, (0, 1))[owner]
    shifted = F.pad(target_input_ids_ptr[1:rows], (0, 1))
    ids, positions = draft_input_ids_ptr[:rows], draft_positions_ptr[:rows]
    new = torch.where(place == length - 1, F.pad(following, (0, 1))[owner], shifted)
    ids.copy_(torch.where(place < length, new, ids))
    positions.copy_(torch.where(place < length, target_positions_ptr[:rows], positions))
    last_token_indices_ptr[:max_num_reqs].zero_()
    last_token_indices_ptr[:requests] = starts + kept - 1
    draft_query_start_loc_ptr[:requests] = starts
    draft_query_start_loc_ptr[requests : max_num_reqs + 1] = ends[-1]
    draft_seq_lens_ptr[requests:max_num_reqs].zero_()
    draft_seq_lens_ptr[:requests] = seq_lens_ptr[:requests]
    draft_current_step_ptr.zero_()


def prepare_decode_inputs(
    draft_tokens_ptr: torch.Tensor,
    target_seq_lens_ptr: torch.Tensor,
    num_rejected_ptr: torch.Tensor,
    input_ids_ptr: torch.Tensor,
    positions_ptr: torch.Tensor,
    sample_src_positions_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    max_model_len: int,
    max_num_reqs: int,
    ADVANCE_DRAFT_POSITIONS: bool,
    **_: Any,
) -> None:
    """One row per request for the second forward: the first draft token (``draft_tokens_ptr`` ``[n]``), its position and
    the context without what was refused."""
    requests = draft_tokens_ptr.shape[0]
    input_ids_ptr[:requests] = draft_tokens_ptr
    sample_src_positions_ptr[:requests] += 1
    lens = target_seq_lens_ptr[:requests] - num_rejected_ptr[:requests]
    if ADVANCE_DRAFT_POSITIONS:
        positions_ptr[:requests] = (positions_ptr[:requests] + 1).clamp_(max=max_model_len - 1)
        lens = (lens + 1).clamp_(max=max_model_len)
    bounds = torch.arange(max_num_reqs + 1, dtype=query_start_loc_ptr.dtype, device=query_start_loc_ptr.device)
    query_start_loc_ptr[: max_num_reqs + 1] = bounds.clamp_(max=requests)
    seq_lens_ptr[requests:max_num_reqs].zero_()
    seq_lens_ptr[:requests] = lens


def update_draft_inputs(
    output_draft_tokens_ptr: torch.Tensor,
    next_input_hidden_states_ptr: torch.Tensor,
    input_ids_ptr: torch.Tensor,
    positions_ptr: torch.Tensor,
    sample_src_positions_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    draft_tokens_ptr: torch.Tensor,
    current_draft_step_ptr: torch.Tensor,
    hidden_states_ptr: torch.Tensor,
    hidden_size: int,
    max_model_len: int,
    ADVANCE_DRAFT_POSITIONS: bool,
    **_: Any,
) -> None:
    """Keep the step's draft token (``output_draft_tokens_ptr`` ``[R, K]``), and make it the next forward's input.

    Upstream leaves the inputs alone after the last step, which only the device knows; they are not read again.
    """
    requests = draft_tokens_ptr.shape[0]
    step = current_draft_step_ptr.view(1, 1).expand(requests, 1)
    token = draft_tokens_ptr.to(output_draft_tokens_ptr.dtype)
    output_draft_tokens_ptr[:requests].scatter_(1, step, token.unsqueeze(1))
    sample_src_positions_ptr[:requests] += 1
    input_ids_ptr[:requests] = draft_tokens_ptr
    next_input_hidden_states_ptr[:requests, :hidden_size] = hidden_states_ptr[:requests, :hidden_size]
    if ADVANCE_DRAFT_POSITIONS:
        positions_ptr[:requests] = (positions_ptr[:requests] + 1).clamp_(max=max_model_len - 1)
        seq_lens_ptr[:requests] = (seq_lens_ptr[:requests] + 1).clamp_(max=max_model_len)


def scan_for_ngrams(
    token_ids_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    scratch_ptr: torch.Tensor,
    L: int,
    MIN_N: int,
    MAX_N: int,
    **_: Any,
) -> None:
    """Where each request's last tokens stood before: the longest match of ``MIN_N`` to ``MAX_N`` tokens, of those the last.

    ``token_ids_ptr`` is ``[R, longest request]``. The first column of ``scratch_ptr`` ``[n, blocks]`` gets the match's
    length times ``L + 1``, plus its position, plus 1; 0 without a match, as in the other columns.
    """
    requests = idx_mapping_ptr.shape[0]
    tokens = token_ids_ptr[idx_mapping_ptr]
    length = total_len_ptr[idx_mapping_ptr].long().unsqueeze(1)
    end = torch.arange(tokens.shape[1], device=tokens.device)  # the match's last token
    agrees = end < length - 1
    best = torch.zeros_like(tokens, dtype=torch.int64)
    for n in range(1, MAX_N + 1):
        back = n - 1
        wanted = tokens.gather(1, (length - n).clamp(min=0))
        earlier = F.pad(tokens, (back, 0), value=-1)[:, : tokens.shape[1]]
        agrees = agrees & (earlier == wanted) & (length >= n) & (end >= back)
        if n >= MIN_N:
            best = torch.where(agrees, n * (L + 1) + end - back + 1, best)
    eligible = (num_sampled_ptr[:requests] > 0) & (length.squeeze(1) >= MIN_N)
    scratch_ptr[:requests].zero_()
    scratch_ptr[:requests, 0] = torch.where(eligible, best.amax(dim=1), 0)


def draft_from_ngrams(
    token_ids_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    last_sampled_ptr: torch.Tensor,
    scratch_ptr: torch.Tensor,
    drafts_ptr: torch.Tensor,
    L: int,
    K: int,
    **_: Any,
) -> None:
    """The ``K`` tokens that followed the match (``drafts_ptr`` ``[R, K]``); the last sampled token where there are none,
    which is verified, and refused, like any draft."""
    request, requests = idx_mapping_ptr, idx_mapping_ptr.shape[0]
    score = scratch_ptr[:requests, 0]
    matched = (score > 0) & (num_sampled_ptr[:requests] > 0)
    length = torch.div(score - 1, L + 1, rounding_mode="floor")
    start = (score - 1 - length * (L + 1) + length).unsqueeze(1)
    offset = torch.arange(K, device=score.device)
    there = matched.unsqueeze(1) & (offset < total_len_ptr[request].unsqueeze(1) - start)
    followed = token_ids_ptr[request.unsqueeze(1), (start + offset).clamp_(min=0, max=L - 1)]
    drafts_ptr[:requests] = torch.where(there, followed.long(), last_sampled_ptr[request].unsqueeze(1).long())
