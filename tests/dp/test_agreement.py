# SPDX-License-Identifier: Apache-2.0
"""What follows from a matrix of step vectors: the rules, on thousands of random matrices, and upstream's own
post-processing as an oracle."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.installed import needs_runner_v2
from tests.support.processes import under_virtual_npu
from vllm_ascend_patch.core.dp.agreement import agree, last_microbatch_empty
from vllm_ascend_patch.core.dp.errors import StepMismatchError
from vllm_ascend_patch.core.dp.vector import Field, GraphMode, StepKind, StepVector

from .worlds import matrix, random_world

MANY = settings(max_examples=1000, deadline=None)


worlds = st.integers(0, 2**40).map(random_world)
larger_worlds = worlds.filter(lambda world: len(world) > 1)


@given(worlds, st.randoms(use_true_random=False), st.integers(2, 4))
@MANY
def test_the_decision_does_not_depend_on_the_order_of_the_ranks(
    vectors: list[StepVector], rng: random.Random, parts: int
) -> None:
    order = list(range(len(vectors)))
    rng.shuffle(order)
    straight = agree(matrix(vectors), parts)
    shuffled = agree(matrix([vectors[i] for i in order]), parts)
    per_rank = ("tokens", "active_tokens", "padded_tokens", "idle")
    for name in per_rank:
        assert [getattr(straight, name)[i] for i in order] == list(getattr(shuffled, name)), name
    for name in ("max_tokens", "graph_mode", "microbatch", "any_prefill", "kind", "sequence"):
        assert getattr(straight, name) == getattr(shuffled, name), name
    assert (straight.drafts is None) == (shuffled.drafts is None)


@given(worlds, st.integers(2, 4))
@MANY
def test_every_rank_can_run_what_was_agreed(vectors: list[StepVector], parts: int) -> None:
    agreement = agree(matrix(vectors), parts)
    busy = [v for v in vectors if not v.idle]

    assert agreement.graph_mode == min(v.graph_mode for v in vectors), "the least capable rank decides"
    assert agreement.max_tokens == max(agreement.padded_tokens)
    assert agreement.any_prefill == any(v.with_prefill for v in vectors)
    for vector, tokens, active, padded in zip(
        vectors, agreement.tokens, agreement.active_tokens, agreement.padded_tokens, strict=True
    ):
        assert tokens == vector.tokens <= vector.padded_tokens <= padded, "padding never drops a token"
        assert active == (0 if vector.idle else vector.tokens), "an idle rank's tokens are all padding"

    assert agreement.padded_across_ranks == bool(
        agreement.graph_mode or agreement.microbatch or all(v.pad_vote for v in vectors)
    )
    if agreement.padded_across_ranks:
        assert len(set(agreement.padded_tokens)) == 1, "graphs and micro-batches need one size"
    else:
        assert agreement.padded_tokens == tuple(v.padded_tokens for v in vectors), "nothing else pads across ranks"

    if agreement.microbatch:
        assert busy, "idle ranks alone never split"
        assert all(v.microbatch_vote for v in busy), "all or none"
        assert not any(last_microbatch_empty(v.tokens, agreement.max_tokens, parts) for v in busy)
    elif busy and all(v.microbatch_vote for v in busy):
        assert any(last_microbatch_empty(v.tokens, max(v.padded_tokens for v in vectors), parts) for v in busy)


@given(worlds, st.integers(0, 15), st.booleans())
@MANY
def test_an_idle_ranks_vote_changes_nothing(vectors: list[StepVector], where: int, vote: bool) -> None:
    index = where % len(vectors)
    idle = replace(vectors[index], idle=True, with_prefill=False, microbatch_vote=vote)
    world = [*vectors[:index], idle, *vectors[index + 1 :]]
    other = [*vectors[:index], replace(idle, microbatch_vote=not vote), *vectors[index + 1 :]]
    assert agree(matrix(world)) == agree(matrix(other))


@given(worlds)
@MANY
def test_drafter_forwards_are_agreed_only_if_every_rank_foresaw_its_own(vectors: list[StepVector]) -> None:
    agreement = agree(matrix(vectors))
    assert (agreement.drafts is not None) == all(v.drafts is not None for v in vectors)
    if agreement.drafts is None:
        return
    for position, draft in zip(("first", "next"), agreement.drafts, strict=True):
        votes = [getattr(v.drafts, position) for v in vectors]
        assert draft.kind is StepKind.DRAFT
        assert not draft.microbatch
        assert draft.tokens == tuple(v.tokens for v in votes)
        eager = [v.idle and agreement.graph_mode == GraphMode.NONE for v in vectors]
        assert draft.graph_mode == min(0 if plain else v.graph_mode for v, plain in zip(votes, eager, strict=True))
        assert all(p >= t for p, t in zip(draft.padded_tokens, draft.tokens, strict=True))
        assert draft.graph_mode == GraphMode.NONE or len(set(draft.padded_tokens)) == 1


@given(larger_worlds, st.data())
@MANY
def test_ranks_in_different_steps_all_find_the_same_error(vectors: list[StepVector], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(vectors) - 1))
    if data.draw(st.booleans()):
        sequences = [7] * len(vectors)
        sequences[index] = data.draw(st.integers(0, 2**31 - 1).filter(lambda n: n != 7))
        rows = matrix(vectors, sequences)
    else:
        vectors = [*vectors]
        vectors[index] = replace(vectors[index], kind=StepKind.DRAFT)
        rows = matrix(vectors)
    with pytest.raises(StepMismatchError, match=f"rank {index}: "):
        agree(rows)


def test_a_column_that_nobody_filled_is_named() -> None:
    rows = matrix([StepVector(3, 3), StepVector(4, 4)])
    for row in rows:
        row[1] = 0
    with pytest.raises(StepMismatchError, match="rank 1: nothing #0"):
        agree(rows)


def test_sequence_numbers_wrap_before_int32_ends() -> None:
    rows = matrix([StepVector(1, 1)], [2**31 + 5])
    assert rows[Field.SEQUENCE] == [5]


def test_padding_below_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match="padding cannot be below"):
        StepVector(5, 4)


def test_upstream_derives_the_same_from_the_rows_that_it_is_given() -> None:
    """Oracle: vLLM's own post-processing, in a process of its own (vLLM imports torch_npu, so under the virtual NPU)."""
    result = under_virtual_npu("-m", "tests.dp.upstream_post_processing", "2000")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2000 worlds" in result.stdout


@needs_runner_v2
def test_model_runner_v2_agrees_as_upstreams_own_exchange_would() -> None:
    result = under_virtual_npu("-m", "tests.dp.upstream_runner_v2", "1000")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1000 worlds of model runner V2" in result.stdout


def test_ranks_that_end_up_eager_keep_their_padding_or_drop_it_as_the_runner_does() -> None:
    rows = matrix([StepVector(3, 4, graph_mode=1), StepVector(50, 50)])
    assert agree(rows).padded_tokens == (4, 50)
    assert agree(rows, padding_when_eager=False).padded_tokens == (3, 50)


def test_what_model_runner_v2_tells_of_its_batch_arrives() -> None:
    vectors = [
        StepVector(3, 4, uniform_tokens=1, longest_query=1, requests=3),
        StepVector(9, 9, requests=2, skip_drafts=True),
    ]
    assert agree(matrix(vectors)).batch_rows == ((1, 0), (1, 0), (3, 2), (0, 1))
