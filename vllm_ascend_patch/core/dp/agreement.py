# SPDX-License-Identifier: Apache-2.0
"""What follows from the matrix of all ranks' step vectors: pure functions, hence the same result on every rank.

No communication, no state and no clock here. The rules:

* The least capable rank decides the graph mode.
* Ranks are padded to one size only if a graph or micro-batching demands it, or all of them say that they pad anyway;
  otherwise each keeps its own, as it padded it, or unpadded where ranks that end up eager drop their graph's padding.
* Micro-batching is all or none. Idle ranks have no say: they can neither veto nor bring it about. It is dropped if any
  busy rank's last micro-batch would hold no token of its own.
* The columns must belong together: same sequence number, same kind of forward. If not, every rank finds the same error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .errors import StepMismatchError
from .vector import NUM_FIELDS, Field, GraphMode, StepKind

# Looking members of an enumeration up costs more than the rest of a step's decision.
_KINDS = {int(kind): kind for kind in StepKind}
_MAIN = StepKind.MAIN
_NO_GRAPH = int(GraphMode.NONE)


@dataclass(frozen=True, slots=True)
class StepAgreement:
    """What all ranks run together in one forward.

    All tuples have one entry per data-parallel rank, in rank order.

    Attributes:
        sequence: the number of the vector that led to this agreement. kind: the main model's forward or a drafter's.
        tokens: tokens before any padding (an idle rank's dummy tokens included). active_tokens: tokens that belong to a
        request: ``tokens``, and 0 for idle ranks. Rows from there on are padding. padded_tokens: tokens each rank runs.
        max_tokens: the largest of ``padded_tokens``; the number a choice that all ranks must share may depend on.
        graph_mode: the agreed ``GraphMode``. microbatch: whether all ranks split their batch. any_prefill: whether any
        rank has a request inside its prompt. idle: which ranks run a dummy step. padded_across_ranks: whether ranks
        were padded to one size. drafts: agreements for the drafter forwards that follow (first, later ones), or None if
        some rank could not
            foresee them, so that they need a sync of their own.
        batch_rows: what model runner V2 tells of each rank's batch: uniform query length, longest query, requests, and
        whether
            drafts may be skipped, as in ``StepVector``.
    """

    sequence: int
    kind: StepKind
    tokens: tuple[int, ...]
    active_tokens: tuple[int, ...]
    padded_tokens: tuple[int, ...]
    max_tokens: int
    graph_mode: int
    microbatch: bool
    any_prefill: bool
    idle: tuple[bool, ...]
    padded_across_ranks: bool
    drafts: tuple[StepAgreement, StepAgreement] | None = field(default=None, repr=False)
    batch_rows: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @property
    def dp_size(self) -> int:
        return len(self.tokens)

    def later_draft(self) -> StepAgreement:
        """Of model runner V2, whose ranks agree once a step: what a drafter's second and later forwards run, eagerly, a
        token per request and as many on each rank as the rank with the most requests."""
        requests = self.batch_rows[2]
        largest = max(requests)
        return replace(
            self,
            kind=StepKind.DRAFT,
            tokens=requests,
            active_tokens=tuple(0 if i else n for n, i in zip(requests, self.idle, strict=True)),
            padded_tokens=(largest,) * self.dp_size,
            max_tokens=largest,
            graph_mode=_NO_GRAPH,
            padded_across_ranks=True,
        )

    def canonical_rows(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Rows (tokens, padded tokens, micro-batch vote, graph mode) that encode the decision itself.

        Whoever derives padding, micro-batching and graph mode from these rows by all-votes-equal, minimum and maximum
        arrives at this agreement, idle ranks included.
        """
        size = self.dp_size
        tokens = self.tokens
        if self.microbatch:  # an idle rank's dummy token must not make its last micro-batch look empty
            tokens = tuple(p if i else t for t, p, i in zip(self.tokens, self.padded_tokens, self.idle, strict=True))
        return tokens, self.padded_tokens, (int(self.microbatch),) * size, (int(self.graph_mode),) * size


def last_microbatch_empty(tokens: int, padded_tokens: int, num_microbatches: int) -> bool:
    """Whether splitting ``padded_tokens`` into ``num_microbatches`` equal parts (the last takes the remainder) leaves
    the last part without any of the first ``tokens`` rows."""
    return padded_tokens // num_microbatches * (num_microbatches - 1) >= tokens


def agree(rows: Sequence[Sequence[int]], num_microbatches: int = 2, padding_when_eager: bool = True) -> StepAgreement:
    """Decide one step from the reduced matrix.

    Args:
        rows: ``[NUM_FIELDS, dp_size]`` ints, what the transport made of all ranks' columns. num_microbatches: parts a
        micro-batched step has; a setting that all ranks share. padding_when_eager: whether a rank that had a graph
        keeps that graph's padding when the ranks agree to run eager, as
            model runner V1 does and V2 does not; a setting that all ranks share.

    Raises:
        StepMismatchError: the columns are not from the same step or the same kind of forward, or a column is empty.
            The same on every rank, since it is found from the shared matrix alone.
    """
    if len(rows) != NUM_FIELDS:
        raise StepMismatchError(f"step matrix has {len(rows)} rows, this version's layout has {NUM_FIELDS}")
    # In the order of `Field`.
    counts, own, votes, modes, prefills, idles, pads, kinds, sequences, declared, *_ = rows
    _check_same_step(kinds, sequences)
    tokens, own_padded, idle = tuple(counts), tuple(own), tuple(map(bool, idles))
    graph_mode = min(modes)
    if graph_mode == _NO_GRAPH and not padding_when_eager:
        own_padded = tokens
    largest = max(own_padded)
    microbatch = any(votes) and _agree_microbatching(tokens, votes, idle, largest, num_microbatches)
    kind = _KINDS[kinds[0]]
    pad = microbatch or graph_mode != _NO_GRAPH or all(pads)
    drafts = None
    if kind is _MAIN and all(declared):
        drafts = (
            _agree_draft(rows, Field.DRAFT_FIRST_TOKENS, graph_mode, idle),
            _agree_draft(rows, Field.DRAFT_NEXT_TOKENS, graph_mode, idle),
        )
    return StepAgreement(
        sequence=sequences[0],
        kind=kind,
        tokens=tokens,
        active_tokens=tuple(0 if i else t for t, i in zip(tokens, idle, strict=True)) if any(idles) else tokens,
        padded_tokens=(largest,) * len(tokens) if pad else own_padded,
        max_tokens=largest,
        graph_mode=graph_mode,
        microbatch=microbatch,
        any_prefill=any(prefills),
        idle=idle,
        padded_across_ranks=pad,
        drafts=drafts,
        batch_rows=tuple(map(tuple, rows[Field.UNIFORM_TOKENS :])),
    )


def _agree_microbatching(
    tokens: tuple[int, ...], votes: Sequence[int], idle: tuple[bool, ...], padded: int, parts: int
) -> bool:
    busy = [rank for rank, is_idle in enumerate(idle) if not is_idle]
    return (
        bool(busy)
        and all(votes[rank] for rank in busy)
        and not any(last_microbatch_empty(tokens[rank], padded, parts) for rank in busy)
    )


def _agree_draft(
    rows: Sequence[Sequence[int]], first_field: int, main_graph_mode: int, idle: tuple[bool, ...]
) -> StepAgreement:
    """Agreement of one drafter forward from the three rows that begin at ``first_field``.

    A rank in a dummy step runs its drafter without graphs when the step itself was agreed to run without: it
    announced its graph-padded count before that was known, so this rank's unpadded one is taken then.
    """
    eager_dummy = main_graph_mode == GraphMode.NONE
    tokens = tuple(rows[first_field])
    modes = [
        GraphMode.NONE if is_idle and eager_dummy else mode
        for mode, is_idle in zip(rows[first_field + 2], idle, strict=True)
    ]
    padded = tuple(
        own if is_idle and eager_dummy else with_graph
        for own, with_graph, is_idle in zip(tokens, rows[first_field + 1], idle, strict=True)
    )
    graph_mode = min(modes)
    largest = max(padded)
    pad = graph_mode != GraphMode.NONE
    return StepAgreement(
        sequence=rows[Field.SEQUENCE][0],
        kind=StepKind.DRAFT,
        tokens=tokens,
        active_tokens=tuple(0 if i else t for t, i in zip(tokens, idle, strict=True)),
        padded_tokens=(largest,) * len(tokens) if pad else padded,
        max_tokens=largest,
        graph_mode=graph_mode,
        microbatch=False,
        any_prefill=any(rows[Field.WITH_PREFILL]),
        idle=idle,
        padded_across_ranks=pad,
    )


def _check_same_step(kinds: Sequence[int], sequences: Sequence[int]) -> None:
    if kinds[0] in _KINDS and kinds.count(kinds[0]) == len(kinds) == sequences.count(sequences[0]):
        return
    names = {number: kind.name.lower() for number, kind in _KINDS.items()} | {0: "nothing"}
    seen = ", ".join(
        f"rank {rank}: {names.get(kind, f'unknown kind {kind}')} #{sequence}"
        for rank, (kind, sequence) in enumerate(zip(kinds, sequences, strict=True))
    )
    raise StepMismatchError(
        f"data-parallel ranks are not in the same step ({seen}). Some rank ran a forward that another did not; "
        "all ranks stop. Check that every rank has the same settings, and report this with the trace of each rank."
    )
