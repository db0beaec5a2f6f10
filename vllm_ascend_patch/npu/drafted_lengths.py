# SPDX-License-Identifier: Apache-2.0
"""Exact key lengths on the host for model runner V1, where a step is prepared before it is known which drafts of the step
before were accepted.

With asynchronous scheduling upstream counts all of them and corrects that on the device; attention takes its lengths from
the host. Whether steps with drafts are scheduled so is ``config_defaults.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_ascend_patch.core.refused_drafts import refused_drafts
from vllm_ascend_patch.seams import serving


class ExactLengths:
    """Goes before upstream's ``GPUModelRunner`` among the bases of a runner."""

    input_batch: Any
    optimistic_seq_lens_cpu: torch.Tensor
    valid_sampled_token_count_event: Any
    _correct_counts: Callable[[], None] | None = None
    """Upstream's correction of the batch's computed tokens, until it was made."""
    _spare_counts: torch.Tensor | None = None
    """Memory of the batch's computed tokens that is not in use."""

    def _update_states(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's. After unsampled drafts it returns what corrects the batch once the sampled counts have arrived, to be
        called after the forward; here it is called before attention is told its lengths, the first to need it."""
        self._correct_counts = super()._update_states(*args, **kwargs)  # type: ignore[misc]

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, with exact key lengths on the host.

        All that precedes it, input preparation and the ranks' agreement, has not waited for the step before. The longest
        request stays what upstream has for it, a bound: whether the drafter runs depends on it, and was foreseen
        (``seams/step/drafts.py``).
        """
        build = super()._build_attention_metadata  # type: ignore[misc]
        correct, self._correct_counts = self._correct_counts, None
        if correct is None:
            return build(*args, **kwargs)
        requests = slice(self.input_batch.num_reqs)
        lens = self.optimistic_seq_lens_cpu[requests]
        computed = self._turn_counts()[requests]
        bound = int(lens.max())
        lens -= computed
        correct()  # waits for the sampled counts, not for the drafter, which comes after them
        lens += computed
        metadata, drafting = build(*args, **kwargs)
        if drafting is not None:
            drafting.max_seq_len = bound
        return metadata, drafting

    def _turn_counts(self) -> torch.Tensor:
        """Computed tokens of the batch's requests, ``[most requests]``, in memory that nothing else reads.

        The step's copy of them to the device may be waiting behind the drafter, and its source must not change under it. Two
        pieces of memory are enough: upstream begins a step by waiting for the copies of the one before.
        """
        batch, spare = self.input_batch, self._spare_counts
        counts = batch.num_computed_tokens_cpu_tensor
        if spare is None:
            spare = torch.empty_like(counts, pin_memory=counts.is_pinned())
        spare.copy_(counts)
        self._spare_counts = counts
        batch.num_computed_tokens_cpu_tensor, batch.num_computed_tokens_cpu = spare, spare.numpy()
        return spare

    def propose_draft_token_ids(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Upstream's. With asynchronous scheduling it has the sampled counts copied to the host before the drafter runs, so
        that forwards after the first find there how many drafts were refused, without waiting for those before them."""
        step = serving.entering(self).step
        if self.valid_sampled_token_count_event is not None:
            scheduled = scheduler_output.scheduled_spec_decode_tokens
            drafts = [len(scheduled.get(request, ())) for request in self.input_batch.req_ids]
            sampled: Callable[[], list[int]] = self._get_valid_sampled_token_count  # type: ignore[attr-defined]
            step.refused = lambda: refused_drafts(drafts, sampled())
        try:
            return super().propose_draft_token_ids(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        finally:
            step.refused = None
