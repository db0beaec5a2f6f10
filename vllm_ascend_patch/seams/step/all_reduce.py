# SPDX-License-Identifier: Apache-2.0
"""vLLM's data-parallel all-reduce, answered from the step vector (releases from 0.11.1 on; ``_run_ar`` differs in its rows).

Arguments are bound by name, so that one adapter serves all releases.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

from vllm_ascend_patch.core.dp import StepAgreement, Vote
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.by_name import parameters_of

from .vote import VoteCapturedError


def run_ar(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of upstream's all-reduce. Returns int32 rows on the CPU, ``[rows, dp_size]``, in upstream's order."""
    names = parameters_of(original)
    bound = dict(zip(names, args, strict=False)) | kwargs
    vote = Vote(
        tokens=int(bound["orig_num_tokens_per_ubatch"]),
        padded_tokens=int(bound["padded_num_tokens_per_ubatch"]),
        microbatch=bool(bound["should_ubatch"]),
        graph_mode=int(bound.get("cudagraph_mode", 0)),
        pad=bool(bound.get("should_dp_pad", False)),
    )
    state = serving.current()
    if state.step.capturing:
        raise VoteCapturedError(vote)
    session = state.session
    if session is None:
        return original(*args, **kwargs)
    agreement = session.resolve(vote)
    session.channel.progress.enter("forward", blocking=True)
    rows = rows_for(names, agreement)
    return torch.frombuffer(array("i", chain.from_iterable(rows)), dtype=torch.int32).view(len(rows), -1)


def rows_for(names: tuple[str, ...], agreement: StepAgreement) -> list[tuple[int, ...]]:
    """The rows that upstream's post-processing of this release expects, encoding the agreement.

    Args:
        names: parameter names of the release's ``_run_ar``; they tell which rows it has.
        agreement: what the ranks agreed on.
    """
    tokens, padded, microbatch, graph_mode = agreement.canonical_rows()
    rows = [tokens, padded, microbatch]
    if "should_dp_pad" in names:
        rows.append((int(agreement.padded_across_ranks),) * agreement.dp_size)
    if "cudagraph_mode" in names:
        rows.append(graph_mode)
    return rows
