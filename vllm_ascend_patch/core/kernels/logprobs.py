# SPDX-License-Identifier: Apache-2.0
"""The kernels behind log-probabilities in model runner V2: of chosen tokens, their ranks, and which tokens are chosen.

Parameter names are the upstream kernels'; ``logits_ptr`` is ``[n, vocabulary]``. Launched only where a request of the
step asks for log-probabilities. Nothing is read from the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def topk_log_softmax(output_ptr: torch.Tensor, logits_ptr: torch.Tensor, topk_ids_ptr: torch.Tensor, **_: Any) -> None:
    """float32 ``[n, k]``: log-probabilities of the tokens ``topk_ids_ptr`` ``[n, k]``."""
    logits = logits_ptr.float()
    logits = logits - logits.amax(dim=1, keepdim=True)
    output_ptr.copy_(logits.gather(1, topk_ids_ptr) - logits.exp().sum(dim=1, keepdim=True).log_())


def ranks(output_ptr: torch.Tensor, logits_ptr: torch.Tensor, token_ids_ptr: torch.Tensor, **_: Any) -> None:
    """int64 ``[n]``: how many tokens are at least as likely as ``token_ids_ptr`` ``[n]``."""
    own = logits_ptr.gather(1, token_ids_ptr.long().unsqueeze(1))
    output_ptr.copy_((logits_ptr >= own).sum(dim=1))


def fill_logprob_token_ids(
    out_token_ids_ptr: torch.Tensor,
    out_valid_mask_ptr: torch.Tensor,
    sampled_token_ids_ptr: torch.Tensor,
    topk_indices_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    num_per_req_token_ids_ptr: torch.Tensor,
    per_req_token_ids_ptr: torch.Tensor,
    NUM_TOPK: int,
    **_: Any,
) -> None:
    """Ids ``[n, 1 + k]`` and which of them count: the sampled token, then the request's own list where it has one, else
    the likeliest ``NUM_TOPK``."""
    request = expanded_idx_mapping_ptr
    width = out_token_ids_ptr.shape[1] - 1
    column = torch.arange(width, device=out_token_ids_ptr.device)
    count = num_per_req_token_ids_ptr[request].unsqueeze(1)
    own = F.pad(per_req_token_ids_ptr[request], (0, width))[:, :width]
    likeliest = F.pad(topk_indices_ptr[:, :NUM_TOPK], (0, width - NUM_TOPK)) if NUM_TOPK else torch.zeros_like(own)
    valid = column < torch.where(count > 0, count, NUM_TOPK)
    ids = torch.where(count > 0, own, likeliest)
    out_token_ids_ptr[:, 0] = sampled_token_ids_ptr
    out_token_ids_ptr[:, 1:] = torch.where(valid, ids.to(out_token_ids_ptr.dtype), out_token_ids_ptr[:, 1:])
    out_valid_mask_ptr[:, 0] = True
    out_valid_mask_ptr[:, 1:] |= valid


def prompt_logprobs_token_ids(
    prompt_logprobs_token_ids_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    all_token_ids_ptr: torch.Tensor,
    **_: Any,
) -> None:
    """int64 ``[tokens]``: the token that follows each token of the step in its request."""
    requests = idx_mapping_ptr.shape[0]
    starts, ends = query_start_loc_ptr[:requests], query_start_loc_ptr[1 : requests + 1]
    token = torch.arange(prompt_logprobs_token_ids_ptr.shape[0], dtype=ends.dtype, device=ends.device)
    owner = torch.searchsorted(ends, token, right=True).clamp_(max=requests - 1)
    following = token + (num_computed_tokens_ptr[idx_mapping_ptr] + 1 - starts)[owner]
    following = following.clamp_(min=0, max=all_token_ids_ptr.shape[1] - 1)
    prompt_logprobs_token_ids_ptr.copy_(all_token_ids_ptr[idx_mapping_ptr[owner], following])
