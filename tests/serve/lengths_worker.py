# SPDX-License-Identifier: Apache-2.0
"""Asked of workers: are the key lengths that attention is told on the host those that the device has? Only observes."""

from __future__ import annotations

from collections import Counter
from typing import Any

COUNTED = ("steps", "drafter forwards", "resumed", "corrected", "wrong", "wrong in the drafter")
DRAFT = "build_per_group_and_layer_attn_metadata"


class LengthsWorker:
    """Mixed into the worker; ``watch`` before what ``seen`` is to tell of."""

    model_runner: Any

    def watch(self) -> None:
        """From now on compare the lengths of every forward of requests, the model's and the drafter's."""
        from vllm_ascend_patch.seams import serving

        runner, counts = self.model_runner, Counter({name: 0 for name in COUNTED})
        update, build = runner._update_states, runner._build_attention_metadata
        draft = getattr(runner.drafter, DRAFT, None)  # none where drafts are the prompt's

        def updated(scheduler_output: Any) -> Any:
            counts["resumed"] += len(scheduler_output.scheduled_cached_reqs.resumed_req_ids)
            return update(scheduler_output)

        def built(*args: Any, **kwargs: Any) -> Any:
            if serving.current().step.dummy:
                return build(*args, **kwargs)
            requests = runner.input_batch.num_reqs
            bounds = runner.optimistic_seq_lens_cpu[:requests].tolist()
            layers, drafting = build(*args, **kwargs)
            true = runner.seq_lens[:requests].tolist()
            counts["steps"] += 1
            counts["corrected"] += sum(bound > length for bound, length in zip(bounds, true, strict=True))
            note(next(iter(layers.values())), true, "wrong")
            return layers, drafting

        def drafted(common: Any, draft_index: int = 0) -> Any:
            assert draft is not None
            groups, layers = draft(common, draft_index)
            true = common.seq_lens[: common.num_reqs].tolist()
            counts["drafter forwards"] += 1
            note(next(iter(layers.values())), true, "wrong in the drafter")
            return groups, layers

        def note(metadata: Any, true: list[int], name: str) -> None:
            told = told_lengths(metadata)[: len(true)]
            counts[name] += sum(one != other for one, other in zip(told, true, strict=True))

        runner._update_states, runner._build_attention_metadata = updated, built
        if draft is not None:
            setattr(runner.drafter, DRAFT, drafted)
        self._counts = counts

    def seen(self) -> dict[str, Any]:
        """Whether steps are scheduled asynchronously; ``steps``, ``drafter forwards``, requests ``resumed`` after they were
        preempted; lengths that upstream's bound exceeded (``corrected``), and lengths that attention was told ``wrong``."""
        return {"asynchronous": bool(self.model_runner.use_async_scheduling), **self._counts}


def told_lengths(metadata: Any) -> list[int]:
    """Key length of each request as attention takes it, with latent attention from both of its halves."""
    if hasattr(metadata, "context_lens"):
        return list(metadata.context_lens)
    told = [] if metadata.decode is None else list(metadata.decode.context_lens)
    if metadata.prefill is not None:
        lens = list(metadata.prefill.prefill_backend.query_lens)
        context = metadata.prefill.chunked_context
        for chunk in [] if context is None else context.chunks:
            for request, share in zip(range(len(lens))[chunk.request_slice], chunk.seq_lens.tolist(), strict=True):
                lens[request] += share
        told += lens
    return told
