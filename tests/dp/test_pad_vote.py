# SPDX-License-Identifier: Apache-2.0
"""Releases whose ranks vote on padding to one size (up to 0.16): the vote reaches the vector, the agreement the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vllm_ascend_patch.core.dp.agreement import agree
from vllm_ascend_patch.core.dp.vector import StepVector
from vllm_ascend_patch.seams.by_name import parameters_of
from vllm_ascend_patch.seams.step.all_reduce import rows_for, run_ar
from vllm_ascend_patch.seams.step.vote import captured_vote

from .worlds import matrix


def with_vote(
    should_ubatch: Any,
    should_dp_pad: Any,
    orig_num_tokens_per_ubatch: Any,
    padded_num_tokens_per_ubatch: Any,
    parallel_config: Any,
) -> None:
    """The parameters of those releases' all-reduce; never called."""


def without_vote(
    should_ubatch: Any, orig_num_tokens_per_ubatch: Any, padded_num_tokens_per_ubatch: Any, parallel_config: Any
) -> None:
    """The parameters of later releases' all-reduce; never called."""


@pytest.mark.parametrize("pads", [True, False])
def test_a_ranks_vote_is_what_upstream_asked_for(pads: bool) -> None:
    vote = captured_vote(run_ar, with_vote, False, pads, 5, 8, None)
    assert vote is not None
    assert vote.vector().pad_vote == pads
    later = captured_vote(run_ar, without_vote, False, 5, 8, None)
    assert later is not None
    assert not later.vector().pad_vote


@pytest.mark.parametrize("pads", [True, False])
def test_ranks_that_pad_anyway_get_one_size_and_their_vote_back(pads: bool) -> None:
    vectors = [replace(StepVector(3, 4), pad_vote=True), replace(StepVector(100, 100), pad_vote=pads)]
    agreement = agree(matrix(vectors))
    assert agreement.padded_tokens == ((100, 100) if pads else (4, 100))
    _, padded, _, voted = rows_for(parameters_of(with_vote), agreement)
    assert padded == agreement.padded_tokens
    assert voted == (int(pads),) * 2
    assert len(rows_for(parameters_of(without_vote), agreement)) == 3
