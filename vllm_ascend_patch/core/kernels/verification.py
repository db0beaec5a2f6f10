# SPDX-License-Identifier: Apache-2.0
"""The kernels with which model runner V2 verifies draft tokens: which are accepted, and what takes the place of the first
that is not.

Parameter names are the upstream kernels'. A request has a row of logits for each of its drafts and one more, its bonus
token's; rows lie side by side, ``cu_num_logits_ptr`` ``[n + 1]`` says where each request's start, and the token that row
``r`` is asked about is ``draft_sampled_ptr[r + 1]``, -1 for one that may not be accepted. ``K`` is the most drafts of a
request. Upstream reduces blocks of the vocabulary and then their results ``[rows, blocks]``; here the first column has the
row's, and the others can never win. Nothing is read from the device, all shapes come from the host. With ``ALL_GREEDY``,
which upstream's kernels do not have, no request has a temperature, and no noise is drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from .sampling import gumbel_noise, uniform_noise

_INFINITY = float("inf")


def gather_draft_sampled(
    draft_sampled_ptr: torch.Tensor,
    pos_ptr: torch.Tensor,
    input_ids_ptr: torch.Tensor,
    positions_ptr: torch.Tensor,
    logits_indices_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Input token and position of each row of logits; -1 for drafts of a step that begins inside the prompt."""
    position = positions_ptr[logits_indices_ptr]
    pos_ptr.copy_(position)
    local = expanded_local_pos_ptr
    placeholder = (local > 0) & (position - local < prefill_len_ptr[expanded_idx_mapping_ptr])
    draft_sampled_ptr.copy_(torch.where(placeholder, -1, input_ids_ptr[logits_indices_ptr]))


def compute_local_logits_stats(
    target_local_argmax_ptr: torch.Tensor,
    target_local_max_ptr: torch.Tensor,
    target_local_sumexp_ptr: torch.Tensor,
    draft_local_max_ptr: torch.Tensor,
    draft_local_sumexp_ptr: torch.Tensor,
    target_logits_ptr: torch.Tensor,
    draft_logits_ptr: torch.Tensor | None,
    expanded_idx_mapping_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    vocab_size: int,
    **_: Any,
) -> None:
    """Of each row's logits the largest, its token, and the sum of exponentials below it; of the drafter's the last two."""
    logits = target_logits_ptr[:, :vocab_size].float()
    largest, token = logits.max(dim=1)
    target_local_argmax_ptr[:, 0] = token
    _store(target_local_max_ptr, target_local_sumexp_ptr, logits, largest)
    if draft_logits_ptr is not None:
        request = expanded_idx_mapping_ptr
        step = expanded_local_pos_ptr.long().clamp(max=draft_logits_ptr.shape[1] - 1)
        logits = _scaled(draft_logits_ptr[request, step, :vocab_size], temp_ptr[request])
        _store(draft_local_max_ptr, draft_local_sumexp_ptr, logits, logits.amax(dim=1))


def _store(maxima: torch.Tensor, sums: torch.Tensor, logits: torch.Tensor, largest: torch.Tensor) -> None:
    maxima.fill_(-_INFINITY)
    maxima[:, 0] = largest
    sums.zero_()
    sums[:, 0] = (logits - largest.unsqueeze(1)).exp_().sum(dim=1)


def _scaled(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Drafters' logits are kept without temperature; greedy rows have no use for them."""
    return logits.float() / torch.where(temperature == 0, 1.0, temperature).unsqueeze(1)


def reject(
    sampled_ptr: torch.Tensor,
    rejected_steps_ptr: torch.Tensor,
    target_rejected_logsumexp_ptr: torch.Tensor,
    draft_rejected_logsumexp_ptr: torch.Tensor,
    target_logits_ptr: torch.Tensor,
    target_local_argmax_ptr: torch.Tensor,
    target_local_max_ptr: torch.Tensor,
    target_local_sumexp_ptr: torch.Tensor,
    draft_sampled_ptr: torch.Tensor,
    draft_logits_ptr: torch.Tensor | None,
    draft_local_max_ptr: torch.Tensor,
    draft_local_sumexp_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    seed_ptr: torch.Tensor,
    pos_ptr: torch.Tensor,
    SYNTHETIC_MODE: bool,
    USE_BLOCK_VERIFICATION: bool,
    FLY_WINDOW_SIZE: int = 0,
    ALL_GREEDY: bool = False,
    **_: Any,
) -> None:
    """How many drafts of each request are accepted (``rejected_steps_ptr`` ``[n]``), and the tokens up to there and the
    model's own choice for greedy requests (``sampled_ptr`` ``[n, K + 1]``).

    A draft is accepted if it is the model's choice, or, where the temperature is not 0, with the ratio of its
    probabilities. The logarithms of the sums for the first that is refused are what a replacement is drawn with.
    """
    if SYNTHETIC_MODE or USE_BLOCK_VERIFICATION or FLY_WINDOW_SIZE:
        raise NotImplementedError("only the standard way of rejecting drafts is supported on Ascend NPUs")
    request, most = idx_mapping_ptr, sampled_ptr.shape[1] - 1
    starts = cu_num_logits_ptr[: request.shape[0]].long()
    drafts = (cu_num_logits_ptr[1 : request.shape[0] + 1] - starts - 1).unsqueeze(1)
    step = torch.arange(most, device=starts.device)
    row = (starts.unsqueeze(1) + step).clamp_(max=target_logits_ptr.shape[0] - 1)
    token = draft_sampled_ptr[(row + 1).clamp_(max=draft_sampled_ptr.shape[0] - 1)].long()
    may_be = (token >= 0) & (step < drafts)
    token = token.clamp_(min=0)
    choice = target_local_argmax_ptr[:, 0][row]
    if ALL_GREEDY:
        length = ((choice == token) & may_be).to(torch.int32).cumprod(dim=1).sum(dim=1)
        sampled_ptr[:, :most] = choice
        rejected_steps_ptr.copy_(length)
        return
    target_sum = target_local_max_ptr[:, 0] + target_local_sumexp_ptr[:, 0].log()
    draft_sum = torch.zeros_like(target_sum)
    likelihood = target_logits_ptr[row, token].float() - target_sum[row]
    proposed = torch.zeros_like(likelihood)
    temperature = temp_ptr[request].unsqueeze(1)
    if draft_logits_ptr is not None:
        draft_sum = draft_local_max_ptr[:, 0] + draft_local_sumexp_ptr[:, 0].log()
        logit = draft_logits_ptr[request.unsqueeze(1), step, token].float()
        proposed = logit / torch.where(temperature == 0, 1.0, temperature) - draft_sum[row]
    chance = uniform_noise(seed_ptr[request].unsqueeze(1), pos_ptr[row])
    greedy = temperature == 0
    accepted = torch.where(greedy, choice == token, likelihood > chance.log() + proposed) & may_be
    sampled_ptr[:, :most] = torch.where(greedy & ~accepted, choice, token)
    length = accepted.to(torch.int32).cumprod(dim=1).sum(dim=1)
    rejected_steps_ptr.copy_(length)
    last = starts + torch.minimum(length, (drafts.squeeze(1) - 1).clamp_(min=0))
    target_rejected_logsumexp_ptr.copy_(target_sum[last])
    draft_rejected_logsumexp_ptr.copy_(draft_sum[last])


def resample(
    resampled_local_argmax_ptr: torch.Tensor,
    resampled_local_max_ptr: torch.Tensor,
    target_logits_ptr: torch.Tensor,
    target_rejected_logsumexp_ptr: torch.Tensor,
    draft_logits_ptr: torch.Tensor | None,
    draft_rejected_logsumexp_ptr: torch.Tensor,
    rejected_step_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    draft_sampled_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    seed_ptr: torch.Tensor,
    pos_ptr: torch.Tensor,
    vocab_size: int,
    USE_FP64: bool,
    WATERMARK: bool = False,
    ALL_GREEDY: bool = False,
    **_: Any,
) -> None:
    """The token behind the accepted ones: drawn from what the model gives it beyond the drafter where a draft was refused,
    from the model's own distribution where none was."""
    if USE_FP64 or WATERMARK:
        raise NotImplementedError("sampling with 64-bit noise or watermarks is not supported on Ascend NPUs")
    requests = rejected_step_ptr.shape[0]
    row = cu_num_logits_ptr[:requests].long() + rejected_step_ptr
    if ALL_GREEDY:  # where a draft was refused, the choice is there already
        _put(resampled_local_argmax_ptr, resampled_local_max_ptr, target_logits_ptr[row, :vocab_size].float())
        return
    own_choice = row == cu_num_logits_ptr[1 : requests + 1] - 1
    request = expanded_idx_mapping_ptr[row]
    refused = draft_sampled_ptr[(row + 1).clamp_(max=draft_sampled_ptr.shape[0] - 1)].long()
    logits = target_logits_ptr[row, :vocab_size].float()
    temperature = temp_ptr[request]
    if draft_logits_ptr is None:
        left = logits.scatter(1, refused.clamp(min=0).unsqueeze(1), -_INFINITY)
    else:
        step = rejected_step_ptr.long().clamp(max=draft_logits_ptr.shape[1] - 1)
        theirs = _scaled(draft_logits_ptr[request, step, :vocab_size], temperature)
        mine = logits - target_rejected_logsumexp_ptr.unsqueeze(1)
        ratio = (theirs - draft_rejected_logsumexp_ptr.unsqueeze(1) - mine).exp_()
        left = torch.where(ratio < 1, mine + torch.log1p(-ratio), -_INFINITY)
    logits = torch.where((own_choice | (refused < 0)).unsqueeze(1), logits, left)
    noise = gumbel_noise(seed_ptr[request], pos_ptr[row], logits.shape[1])
    logits = torch.where((temperature != 0).unsqueeze(1), logits + noise, logits)
    _put(resampled_local_argmax_ptr, resampled_local_max_ptr, logits)


def _put(tokens: torch.Tensor, maxima: torch.Tensor, logits: torch.Tensor) -> None:
    largest, token = logits.max(dim=1)
    maxima.fill_(-_INFINITY)
    maxima[:, 0] = largest
    tokens[:, 0] = token


def insert_resampled(
    sampled_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    resampled_local_argmax_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """Put the drawn token behind the accepted ones, and count it; a greedy request's refused draft has its already."""
    requests = num_sampled_ptr.shape[0]
    place = num_sampled_ptr.long()
    row = cu_num_logits_ptr[:requests] + place
    own_choice = row == cu_num_logits_ptr[1 : requests + 1] - 1
    there = (temp_ptr[expanded_idx_mapping_ptr[row]] == 0) & ~own_choice
    place = place.unsqueeze(1)
    token = torch.where(there, sampled_ptr.gather(1, place).squeeze(1), resampled_local_argmax_ptr[:, 0])
    sampled_ptr.scatter_(1, place, token.unsqueeze(1))
    num_sampled_ptr.add_(1)


def flatten_sampled(
    flat_sampled_ptr: torch.Tensor,
    sampled_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """What was sampled, a request's after the other's, each from its first row of logits on."""
    row = torch.arange(flat_sampled_ptr.shape[0], device=sampled_ptr.device)
    request = torch.searchsorted(cu_num_logits_ptr[1 : sampled_ptr.shape[0] + 1].long(), row, right=True)
    place = row - cu_num_logits_ptr[request]
    token = sampled_ptr[request, place.clamp(max=sampled_ptr.shape[1] - 1)]
    flat_sampled_ptr.copy_(torch.where(place < num_sampled_ptr[request], token, flat_sampled_ptr))
