# SPDX-License-Identifier: Apache-2.0
"""Seams 1 and 2 on model runner V2: the step vector posted before inputs are prepared, and awaited as late as the mode
allows.

V2 agrees in one place, before it prepares inputs, since graphs need the agreed size there. A step that runs eagerly
keeps its own size whatever the others run: it goes on at once, and waits where the agreed token counts are read, in the
forward's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.dp import DPSession, StepAgreement, Vote
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of

from . import phases


def execute_model(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """A step up to its hidden states; of a dummy step the forward, whose agreement ``dummy.py`` has announced."""
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    serving.entering(runner).step.one_token_each = False
    if not bound.get("dummy_run"):
        return phases.execute_model(_announced(original), runner, **bound)
    if not bound.get("is_profile") and not runner.vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs():
        bound["skip_attn_for_dummy_run"] = True  # its slots are negative, and nothing reads what attention would give
    return original(runner, **bound)


def _announced(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(runner: Any, **bound: Any) -> Any:
        session = serving.current().session
        if session is not None:
            _announce_decoding(runner, session, bound["scheduler_output"])
        return original(runner, **bound)

    return step


def _announce_decoding(runner: Any, session: DPSession, output: Any) -> None:
    """Post the vector of a step without prompts: everything in it is known already."""
    scheduled = output.num_scheduled_tokens
    if not output.total_num_scheduled_tokens or output.scheduled_new_reqs or _some_prompt_left(runner, output):
        return
    from vllm.v1.worker.utils import get_uniform_decode_token_count

    requests, tokens, longest = len(scheduled), output.total_num_scheduled_tokens, max(scheduled.values())
    uniform = get_uniform_decode_token_count(requests, tokens, longest, decode_graph_eligible=True)
    _announce(runner, session, requests, tokens, uniform, longest, with_prefill=False)


def _some_prompt_left(runner: Any, output: Any) -> bool:
    """Whether a request of the step, none of them new, is inside its prompt: by what upstream is about to book."""
    known = output.scheduled_cached_reqs
    states = runner.req_states
    rows = np.fromiter(map(states.req_id_to_index.__getitem__, known.req_ids), dtype=np.intp, count=len(known.req_ids))
    return bool((np.asarray(known.num_computed_tokens) < states.prefill_len.np[rows]).any())


def gather_batch_req_state(
    original: Callable[..., Any], runner: Any, scheduler_output: Any, dummy_run: bool, **kwargs: Any
) -> Any:
    """The state of the step's requests; the vector of a step with prompts is posted with what it says."""
    batch, uniform = original(runner, scheduler_output, dummy_run, **kwargs)
    if batch is not None:
        _tell_kernels(runner, batch)
    session = serving.current().session
    if session is not None and batch is not None and not session.announced:
        scheduled = scheduler_output.num_scheduled_tokens
        longest = None if batch.has_prefill else max(scheduled.values())
        _announce(runner, session, len(scheduled), batch.num_tokens, uniform, longest, batch.has_prefill)
    return batch, uniform


def _tell_kernels(runner: Any, batch: Any) -> None:
    """What the host knows of a step and the arguments of upstream's kernels do not say."""
    step = serving.current().step
    one_each = batch.num_tokens == len(batch.req_ids) and not batch.has_prefill
    step.one_token_each = one_each and runner.speculator is None
    step.penalties = bool(runner.sampler.penalties_state.use_penalty[batch.idx_mapping_np].any())


def _announce(
    runner: Any,
    session: DPSession,
    requests: int,
    tokens: int,
    uniform: int | None,
    longest: int | None,
    with_prefill: bool,
) -> None:
    descriptor = runner.cudagraph_manager.dispatch(requests, tokens, uniform, num_active_loras=0, max_query_len=longest)
    with trace.span("announce"):
        session.announce(_vote(descriptor, requests, tokens, uniform, longest), with_prefill)


def _vote(descriptor: Any, requests: int, tokens: int, uniform: int | None, longest: int | None) -> Vote:
    return Vote(
        tokens=tokens,
        padded_tokens=descriptor.num_tokens,
        graph_mode=descriptor.cg_mode.value,
        requests=requests,
        uniform_tokens=uniform or 0,
        longest_query=longest or 0,
    )


def dispatch_cg_and_sync_dp(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """How the batch runs, and what the ranks agreed on about it."""
    bound = dict(zip(parameters_of(original), args, strict=False)) | kwargs
    session = serving.current().session
    if session is None or bound["dp_size"] == 1:
        return original(**bound)
    if bound.get("dp_sync_state") is not None:  # a drafter's forward, which the step's agreement covers
        dispatched = original(**bound)
        session.follow(dispatched[1].num_tokens_across_dp.tolist())
        return dispatched
    own, _ = original(**(bound | {"dp_size": 1}))
    vote = _vote(own, bound["num_reqs"], bound["num_tokens"], bound["uniform_token_count"], bound.get("max_query_len"))
    if own.cg_mode.name == "NONE" and session.announced:
        return own, _LateState(session, vote)
    agreement = _resolve(session, vote)
    with _answering(original, agreement):
        return original(**bound)


def _resolve(session: DPSession, vote: Vote) -> StepAgreement:
    agreement = session.resolve(vote)
    session.channel.progress.enter("forward", blocking=True)
    return agreement


@contextmanager
def _answering(original: Callable[..., Any], agreement: StepAgreement) -> Iterator[None]:
    """Upstream's exchange, whichever the release makes, answers with the agreement for the duration."""
    names = original.__globals__
    answer = _Answer(agreement)
    replaced = {"get_dp_group": lambda: answer, "dist": answer}
    found = {name: names[name] for name in replaced if name in names}
    names.update({name: replaced[name] for name in found})
    try:
        yield
    finally:
        names.update(found)


class _Answer:
    """A data-parallel group, and torch's ``dist``, as far as upstream's exchange asks them for the sum of all rows."""

    cpu_group = None

    def __init__(self, agreement: StepAgreement) -> None:
        size = agreement.dp_size
        uniform, longest, requests, skip_drafts = agreement.batch_rows
        self._rows = [
            agreement.tokens,
            (agreement.graph_mode,) * size,
            uniform,
            tuple(length or -1 for length in longest),
            (int(agreement.microbatch),) * size,
            requests,
            skip_drafts,
        ]

    def cpu_all_reduce_(self, tensor: torch.Tensor) -> None:
        """Fill ``tensor`` (int32 ``[rows, dp size]``); releases differ in how many of the rows they have."""
        tensor.copy_(torch.tensor(self._rows[: tensor.shape[0]], dtype=tensor.dtype))

    def all_reduce(self, tensor: torch.Tensor, group: Any = None) -> None:
        self.cpu_all_reduce_(tensor)


class _LateState:
    """Upstream's ``DPSyncState`` of an eager step, whose fields wait for the agreement when they are read."""

    eager = True

    def __init__(self, session: DPSession, vote: Vote) -> None:
        self._session, self._vote = session, vote
        self._known: StepAgreement | None = None

    @property
    def _agreed(self) -> StepAgreement:
        if self._known is None:
            self._known = _resolve(self._session, self._vote)
        return self._known

    def known(self) -> Any:
        """Upstream's own state, which drafters derive others from."""
        from vllm.v1.worker.gpu.dp_utils import DPSyncState

        return DPSyncState(**{each.name: getattr(self, each.name) for each in fields(DPSyncState)})

    @property
    def num_tokens_across_dp(self) -> torch.Tensor:
        return torch.tensor(self._agreed.padded_tokens, dtype=torch.int32)

    @property
    def uniform_token_count(self) -> int | None:
        first, *others = set(self._agreed.batch_rows[0])
        return None if others else first or None

    @property
    def num_reqs(self) -> int:
        return max(self._agreed.batch_rows[2])

    @property
    def skip_drafts(self) -> bool:
        return all(self._agreed.batch_rows[3])


def propose(original: Callable[..., Any], speculator: Any, *args: Any, **kwargs: Any) -> Any:
    """Drafts of a step, whose agreement the main forward has waited for; of a dummy step without attention, as there."""
    bound = dict(zip(parameters_of(original)[1:], args, strict=False)) | kwargs
    state = bound.get("dp_sync_state")
    if isinstance(state, _LateState):
        bound["dp_sync_state"] = state.known()
    if bound.get("dummy_run"):
        bound["skip_attn_for_dummy_run"] = True
    return original(speculator, **bound)


def capture_model(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's capture, which agrees on nothing: all ranks capture the same sizes."""
    session = serving.entering(runner).session
    if session is None:
        return original(runner, *args, **kwargs)
    session.current = None
    progress = session.channel.progress
    progress.enter("graph capture", blocking=True)
    try:
        return original(runner, *args, **kwargs)
    except Exception as error:
        session.abandon(error)
        raise
    finally:
        progress.enter("start-up", blocking=False)
