# SPDX-License-Identifier: Apache-2.0
"""The rejection sampler's kernels in torch operators: which draft tokens are accepted, and what replaces the first
refused.

Parameter names are the upstream kernels'. Per-request values are ``[requests]``, per-draft values ``[drafts]`` with the
drafts of a request side by side; ``cu_num_draft_tokens_ptr`` has their inclusive running sum. Upstream's kernels read
them through flat pointers, so a column ``[n, 1]`` means the same as ``[n]``, here too. All shapes come from the host,
nothing is read from the device.
"""

from __future__ import annotations

from typing import Any

import torch


def rejection_greedy_sample(
    output_token_ids_ptr: torch.Tensor,
    cu_num_draft_tokens_ptr: torch.Tensor,
    draft_token_ids_ptr: torch.Tensor,
    target_argmax_ptr: torch.Tensor,
    bonus_token_ids_ptr: torch.Tensor,
    is_greedy_ptr: torch.Tensor | None,
    max_spec_len: int,
    uniform_probs_ptr: torch.Tensor | None,
    synthetic_conditional_rates_ptr: torch.Tensor | None,
    SYNTHETIC_MODE: bool,
) -> None:
    """Fill the rows of greedy requests: drafts up to the first that is not the model's own choice, then that choice;
    the bonus token if none was refused. ``output_token_ids_ptr`` is int32 ``[requests, max_spec_len + 1]``."""
    rows = _Rows(cu_num_draft_tokens_ptr, draft_token_ids_ptr, max_spec_len)
    draft = rows.of(draft_token_ids_ptr)
    chosen = rows.of(target_argmax_ptr).to(draft.dtype)
    if SYNTHETIC_MODE:
        assert uniform_probs_ptr is not None
        assert synthetic_conditional_rates_ptr is not None
        accepted = (rows.of(uniform_probs_ptr) < synthetic_conditional_rates_ptr[:max_spec_len]) & (draft >= 0)
        chosen = torch.where(accepted, draft, chosen)
    else:
        accepted = draft == chosen
    rows.write(output_token_ids_ptr, accepted, chosen, bonus_token_ids_ptr, is_greedy_ptr)


def rejection_random_sample(
    output_token_ids_ptr: torch.Tensor,
    cu_num_draft_tokens_ptr: torch.Tensor,
    draft_token_ids_ptr: torch.Tensor,
    draft_probs_ptr: torch.Tensor | None,
    target_probs_ptr: torch.Tensor,
    bonus_token_ids_ptr: torch.Tensor,
    recovered_token_ids_ptr: torch.Tensor,
    uniform_probs_ptr: torch.Tensor,
    is_greedy_ptr: torch.Tensor,
    max_spec_len: int,
    vocab_size: int,
    synthetic_conditional_rates_ptr: torch.Tensor | None,
    NO_DRAFT_PROBS: bool,
    SYNTHETIC_MODE: bool,
) -> None:
    """The same for sampling requests: a draft is accepted with probability target / draft (``*_probs_ptr``
    ``[drafts, vocab_size]``), and the first refused one is replaced by the recovered token."""
    rows = _Rows(cu_num_draft_tokens_ptr, draft_token_ids_ptr, max_spec_len)
    draft = rows.of(draft_token_ids_ptr)
    uniform = rows.of(uniform_probs_ptr)
    if SYNTHETIC_MODE:
        assert synthetic_conditional_rates_ptr is not None
        accepted = uniform < synthetic_conditional_rates_ptr[:max_spec_len]
    else:
        column = draft_token_ids_ptr.reshape(-1, 1).clamp(min=0).long()
        ratio = target_probs_ptr.gather(1, column).squeeze(1)
        possible = torch.ones_like(ratio, dtype=torch.bool)
        if not NO_DRAFT_PROBS:
            assert draft_probs_ptr is not None
            drafted = draft_probs_ptr.gather(1, column).squeeze(1)
            possible = drafted > 0
            ratio = ratio / torch.where(possible, drafted, 1.0)
        accepted = rows.of(possible) & (rows.of(ratio) >= uniform)
    accepted &= draft >= 0  # -1 pads drafts that the scheduler dropped
    chosen = torch.where(accepted, draft, rows.of(recovered_token_ids_ptr).to(draft.dtype))
    rows.write(output_token_ids_ptr, accepted, chosen, bonus_token_ids_ptr, ~is_greedy_ptr)


def expand(
    output_ptr: torch.Tensor,
    input_ptr: torch.Tensor,
    cu_num_tokens_ptr: torch.Tensor,
    replace_from: int,
    replace_to: int,
    **_tiling: Any,
) -> None:
    """Write each request's value once per token of it, with ``replace_from`` replaced."""
    values = input_ptr.reshape(-1)[_owner(cu_num_tokens_ptr, output_ptr.shape[0])]
    output_ptr.view(-1).copy_(torch.where(values == replace_from, replace_to, values))


def sample_recovered_tokens(
    output_token_ids_ptr: torch.Tensor,
    cu_num_draft_tokens_ptr: torch.Tensor,
    draft_token_ids_ptr: torch.Tensor,
    draft_probs_ptr: torch.Tensor | None,
    target_probs_ptr: torch.Tensor,
    inv_q_ptr: torch.Tensor,
    vocab_size: int,
    NO_DRAFT_PROBS: bool,
    **_tiling: Any,
) -> None:
    """For each draft, the token to take in its place: a sample of what the target gives beyond the draft's share.

    ``inv_q_ptr`` is ``[requests, vocab_size]``, reciprocals of exponential noise: the largest product is the sample.
    """
    drafts = draft_token_ids_ptr.shape[0]
    if NO_DRAFT_PROBS:
        drafted = draft_token_ids_ptr.reshape(-1, 1).long()
        columns = torch.arange(vocab_size, device=drafted.device)
        rest = target_probs_ptr.masked_fill(columns == drafted, 0.0)
    else:
        assert draft_probs_ptr is not None
        rest = (target_probs_ptr - draft_probs_ptr).clamp_(min=0.0)
    score = rest * inv_q_ptr[_owner(cu_num_draft_tokens_ptr, drafts)]
    output_token_ids_ptr.view(-1).copy_(score.argmax(dim=-1))


def _owner(ends: torch.Tensor, count: int) -> torch.Tensor:
    """The request that each of ``count`` tokens belongs to; ``ends`` ``[requests]``, inclusive running sums."""
    ends = ends.reshape(-1)
    tokens = torch.arange(count, dtype=ends.dtype, device=ends.device)
    return torch.searchsorted(ends, tokens, right=True).clamp_(max=ends.shape[0] - 1)


class _Rows:
    """Draft values as a matrix, one row per request, ``width`` columns; what is past a request's drafts is ignored."""

    def __init__(self, ends: torch.Tensor, drafts: torch.Tensor, width: int) -> None:
        ends = ends.reshape(-1)
        self.counts = torch.diff(ends, prepend=ends.new_zeros(1)).unsqueeze(1)
        self.columns = torch.arange(width + 1, dtype=ends.dtype, device=ends.device)
        self.inside = self.columns[:-1] < self.counts
        starts = ends.unsqueeze(1) - self.counts
        self._index = (starts + self.columns[:-1]).clamp_(max=max(0, drafts.shape[0] - 1)).long()

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """``[drafts]`` as ``[requests, width]``."""
        return values.reshape(-1)[self._index]

    def write(
        self,
        output: torch.Tensor,
        accepted: torch.Tensor,
        chosen: torch.Tensor,
        bonus: torch.Tensor,
        which: torch.Tensor | None,
    ) -> None:
        """Up to and including the first refused position take ``chosen``; with none refused, the bonus token
        follows."""
        fine = accepted | ~self.inside
        through = fine.to(torch.int32).cumprod(dim=1).bool()
        before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], dim=1)  # none refused so far
        ends_here = (self.columns == self.counts) & fine.all(dim=1, keepdim=True)
        if which is not None:
            selected = which.view(-1, 1)
            before, ends_here = before & selected, ends_here & selected
        drafted = output[:, :-1]
        drafted.copy_(torch.where(before & self.inside, chosen.to(output.dtype), drafted))
        output.copy_(torch.where(ends_here, bonus.view(-1, 1).to(output.dtype), output))
