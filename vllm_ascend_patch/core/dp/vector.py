# SPDX-License-Identifier: Apache-2.0
"""The step vector: what one rank tells the others about the forward it is about to run, and where it lies on the wire.

Only the layout and its packing live here; what follows from a matrix of such vectors is in ``agreement.py``, how it
travels in ``transport.py``.

The wire is one contiguous int32 matrix ``[NUM_FIELDS, dp_size]``. Each rank fills its own column, the rest is zero, and a
SUM all-reduce, or memory that the ranks share, gives every rank the whole matrix.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

SEQUENCE_MODULUS = 1 << 31
"""Sequence numbers wrap here, so that they always fit a positive int32."""


class Field(enum.IntEnum):
    """Rows of the matrix. The order is the wire format: two ranks with different orders must never meet
    (the start-up fingerprint includes ``LAYOUT_VERSION``)."""

    TOKENS = 0
    PADDED_TOKENS = 1
    MICROBATCH_VOTE = 2
    GRAPH_MODE = 3
    WITH_PREFILL = 4
    IDLE = 5
    PAD_VOTE = 6
    KIND = 7
    SEQUENCE = 8
    DRAFT_DECLARED = 9
    DRAFT_FIRST_TOKENS = 10
    DRAFT_FIRST_PADDED = 11
    DRAFT_FIRST_GRAPH_MODE = 12
    DRAFT_NEXT_TOKENS = 13
    DRAFT_NEXT_PADDED = 14
    DRAFT_NEXT_GRAPH_MODE = 15
    UNIFORM_TOKENS = 16
    LONGEST_QUERY = 17
    REQUESTS = 18
    SKIP_DRAFTS = 19


NUM_FIELDS = len(Field)
LAYOUT_VERSION = 3


class StepKind(enum.IntEnum):
    """What kind of forward a vector announces. Busy, idle and profiling ranks may meet in one ``MAIN`` step; a drafter's
    forward may meet only another drafter's. Zero is not used, so that a column nobody filled is recognised."""

    MAIN = 1
    DRAFT = 2


class GraphMode(enum.IntEnum):
    """Captured-graph capability in ascending order, numbered as vLLM numbers its runtime modes (NONE 0, PIECEWISE 1,
    FULL 2, vllm/config/compilation.py)."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class DraftVote:
    """One drafter forward as this rank will run it: tokens, tokens after its own graph padding, graph mode."""

    tokens: int
    padded_tokens: int
    graph_mode: int = GraphMode.NONE


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """The drafter forwards that follow a step, known before the step runs.

    ``first`` is the drafter's forward over the step's tokens, ``next`` each later one (one token per request).
    """

    first: DraftVote
    next: DraftVote


@dataclass(frozen=True, slots=True)
class StepVector:
    """One rank's column.

    Attributes:
        tokens: tokens this rank runs, before any padding.
        padded_tokens: the same after this rank's own padding (graph size, sequence parallelism).
        microbatch_vote: this rank would split the batch into micro-batches.
        graph_mode: the best ``GraphMode`` this rank has a graph for.
        with_prefill: some request of this rank is still inside its prompt.
        idle: a dummy step of a rank without work: its tokens are all padding.
        pad_vote: this rank pads to the largest rank whatever the graph mode (releases that do so once graphs are
            configured).
        kind: which forward this is.
        drafts: the drafter forwards this step will be followed by, or None if they are not known for certain.
        uniform_tokens: tokens that every request of a decoding step runs, 0 if they differ; this and what follows is told by
            model runner V2 alone.
        longest_query: tokens that no request of the step runs more of, 0 for no bound.
        requests: requests of the step.
        skip_drafts: no request of this rank can use drafts of this step.
    """

    tokens: int
    padded_tokens: int
    microbatch_vote: bool = False
    graph_mode: int = GraphMode.NONE
    with_prefill: bool = False
    idle: bool = False
    pad_vote: bool = False
    kind: StepKind = StepKind.MAIN
    drafts: DraftPlan | None = None
    uniform_tokens: int = 0
    longest_query: int = 0
    requests: int = 0
    skip_drafts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= self.padded_tokens:
            raise ValueError(
                f"step vector: {self.tokens} tokens padded to {self.padded_tokens}; padding cannot be below the count"
            )


class _Column(Protocol):
    """Anything indexable by row that takes an int: a numpy column or a torch column."""

    def __setitem__(self, row: int, value: int) -> None: ...


def pack(vector: StepVector, sequence: int, column: _Column) -> None:
    """Write ``vector`` into one rank's column.

    Args:
        vector: what to send.
        sequence: how many vectors this rank sent before on this channel; any non-negative int.
        column: shape ``[NUM_FIELDS]``, int32. Every row is written.
    """
    drafts = vector.drafts
    column[0] = vector.tokens
    column[1] = vector.padded_tokens
    column[2] = int(vector.microbatch_vote)
    column[3] = int(vector.graph_mode)
    column[4] = int(vector.with_prefill)
    column[5] = int(vector.idle)
    column[6] = int(vector.pad_vote)
    column[7] = int(vector.kind)
    column[8] = sequence % SEQUENCE_MODULUS
    column[9] = int(drafts is not None)
    for base, vote in ((10, drafts and drafts.first), (13, drafts and drafts.next)):
        column[base] = vote.tokens if vote else 0
        column[base + 1] = vote.padded_tokens if vote else 0
        column[base + 2] = int(vote.graph_mode) if vote else 0
    column[16] = vector.uniform_tokens
    column[17] = vector.longest_query
    column[18] = vector.requests
    column[19] = int(vector.skip_drafts)
