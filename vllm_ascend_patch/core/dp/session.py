# SPDX-License-Identifier: Apache-2.0
"""Which forward needs a vector, and when: the step protocol of one model runner.

A state machine over a ``DPChannel``; it knows announced steps, dummy steps and drafter forwards, but no framework. Seams
translate their framework's calls into these:

* ``announce``: a step of real work begins; its vector goes out at once.
* ``expect_dummy``: a dummy step begins (idle, profiling, warm-up, capture).
* ``resolve``: the framework wants the ranks' agreement for the forward that it is about to run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch.distributed import DistError

from .agreement import StepAgreement
from .channel import DPChannel, Posted
from .errors import DPSyncError, VoteChangedError
from .vector import DraftPlan, DraftVote, GraphMode, StepKind, StepVector

logger = logging.getLogger(__name__)

_LIBRARIES = re.compile(r"\bgloo\b|\bHCCL\b")


@dataclass(frozen=True, slots=True)
class Vote:
    """What the framework decided locally about one forward: the part of the vector that it computes itself."""

    tokens: int
    padded_tokens: int
    microbatch: bool = False
    graph_mode: int = GraphMode.NONE
    pad: bool = False
    uniform_tokens: int = 0
    longest_query: int = 0
    requests: int = 0
    skip_drafts: bool = False

    def as_draft(self) -> DraftVote:
        return DraftVote(self.tokens, self.padded_tokens, self.graph_mode)

    def vector(
        self,
        kind: StepKind = StepKind.MAIN,
        with_prefill: bool = False,
        idle: bool = False,
        drafts: DraftPlan | None = None,
    ) -> StepVector:
        return StepVector(
            tokens=self.tokens,
            padded_tokens=self.padded_tokens,
            microbatch_vote=self.microbatch,
            graph_mode=self.graph_mode,
            pad_vote=self.pad,
            kind=kind,
            with_prefill=with_prefill,
            idle=idle,
            drafts=drafts,
            uniform_tokens=self.uniform_tokens,
            longest_query=self.longest_query,
            requests=self.requests,
            skip_drafts=self.skip_drafts,
        )


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether torch's collectives raised it: their own kind, or a plain error that names the library."""
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and not isinstance(error, DPSyncError) and bool(_LIBRARIES.search(str(error)))
    )


@dataclass(slots=True)
class _Dummy:
    idle: bool
    plan: Callable[[], DraftPlan | None]


class DPSession:
    """The protocol of one rank.

    Args:
        channel: this rank's end of the sync.
    """

    def __init__(self, channel: DPChannel) -> None:
        self.channel = channel
        self.rank = channel.transport.rank
        self.current: StepAgreement | None = None
        self._pending: tuple[Vote, Posted] | None = None
        self._dummy: _Dummy | None = None
        self._declared: DraftPlan | None = None
        self._agreed_drafts: tuple[StepAgreement, StepAgreement] | None = None
        self._draft_index = 0
        self._step_is_eager = False

    @property
    def announced(self) -> bool:
        """Whether the vector of a step of real work is under way."""
        return self._pending is not None

    # -- steps ---------------------------------------------------------------------------------------------------

    def announce(self, vote: Vote, with_prefill: bool, drafts: DraftPlan | None = None) -> None:
        """Send the vector of a step that is about to be prepared. ``resolve`` must follow with the same vote.

        Args:
            vote: what the framework will vote.
            with_prefill: some request is inside its prompt.
            drafts: the drafter forwards of this step, if they are certain.
        """
        self.channel.progress.serving = True
        self._begin()
        self._pending = vote, self.channel.post(vote.vector(with_prefill=with_prefill, drafts=drafts))
        self._declared = drafts

    def expect_dummy(self, idle: bool, plan: Callable[[], DraftPlan | None] = lambda: None) -> None:
        """A dummy step begins; the next ``resolve`` belongs to it.

        Args:
            idle: a rank without work joins the others' step; its tokens are padding.
            plan: computes the drafter forwards of this step, if they are certain. Called in ``resolve``.
        """
        if idle:
            self.channel.progress.serving = True
        self._begin()
        self._dummy = _Dummy(idle, plan)

    def end_dummy(self) -> None:
        """The dummy step is over, whether or not it ever asked for an agreement."""
        self._dummy = None

    def resolve(self, vote: Vote) -> StepAgreement:
        """The agreement for the forward that the framework is about to run with this vote.

        Raises:
            VoteChangedError: an announced step or a declared drafter forward turned out different.
            DPSyncError: see ``DPChannel.wait``.
        """
        if self._pending is not None:
            agreement = self._resolve_announced(vote)
        elif self._dummy is not None:
            agreement = self._resolve_dummy(vote)
        else:
            agreement = self._resolve_draft(vote)
        self.current = agreement
        return agreement

    def follow(self, num_tokens_across_dp: Sequence[int]) -> None:
        """A drafter's forward begins that needs no vector of its own, because the step's says what it runs.

        Args:
            num_tokens_across_dp: the padded token counts of the forward; the step's own for the drafter's first.
        """
        if self.channel.counters is not None:
            self.channel.counters.count_reuse()
        if self.current is not None and tuple(num_tokens_across_dp) != self.current.padded_tokens:
            self.current = self.current.later_draft()

    def check_forward(self, num_tokens_across_dp: Sequence[int] | None) -> StepAgreement | None:
        """The agreement of the forward that begins now; None before the first one.

        Args:
            num_tokens_across_dp: the padded token counts that the framework passes to the forward, ``[dp_size]`` ints;
                checked against the agreement. None skips the check, e.g. where the framework has divided them into
                micro-batches.

        Raises:
            DPSyncError: the forward does not run what the ranks agreed on.
        """
        agreement = self.current
        if agreement is not None and num_tokens_across_dp is not None and not agreement.microbatch:
            counts = tuple(int(n) for n in num_tokens_across_dp)
            if counts != agreement.padded_tokens:
                raise DPSyncError(
                    f"a forward runs {counts} tokens per data-parallel rank, but the ranks agreed on "
                    f"{agreement.padded_tokens} (step {agreement.sequence}, {agreement.kind.name.lower()})"
                )
        return agreement

    def abandon(self, error: BaseException) -> None:
        """The step failed on this rank between its announcement and its end: tell the others, let go of the collective."""
        watchdog = self.channel.watchdog
        if watchdog is not None:
            if _is_of_a_collective(error):  # which names no host; once it is raised, the server may end this process
                error = watchdog.explain(error, "a collective")
                logger.critical("rank %d cannot go on: %s", self.rank, error)
            elif not isinstance(error, DPSyncError):  # those name their cause themselves
                for peer in watchdog.ended_peers():
                    logger.critical("rank %d failed in step %d; %s", self.rank, self.channel.posted, peer.describe())
            watchdog.report_failure(f"{type(error).__name__}: {error}")
        pending, self._pending = self._pending, None
        if pending is not None:
            self.channel.abandon()

    def close(self) -> None:
        """Leave the group in order."""
        if self.channel.watchdog is not None:
            self.channel.watchdog.stop()

    # -- the three sources of an agreement -----------------------------------------------------------------------

    def _begin(self) -> None:
        if self._pending is not None:
            raise DPSyncError(
                f"rank {self.rank}: a new step begins although the vector of the announced one "
                f"({self._pending[0]}) was never used; the other ranks are a step ahead"
            )
        self._dummy = None
        self._declared = self._agreed_drafts = None
        self._draft_index = 0

    def _resolve_announced(self, vote: Vote) -> StepAgreement:
        assert self._pending is not None
        announced, posted = self._pending
        if vote != announced:
            self._fail(
                VoteChangedError(f"rank {self.rank} announced {announced} at the start of the step, but runs {vote}")
            )
        self._pending = None
        agreement = self.channel.wait(posted)
        self._agreed(agreement)
        return agreement

    def _resolve_dummy(self, vote: Vote) -> StepAgreement:
        assert self._dummy is not None
        dummy, self._dummy = self._dummy, None
        plan = dummy.plan()
        agreement = self.channel.sync(vote.vector(idle=dummy.idle, drafts=plan))
        self._declared = plan
        self._agreed(agreement)
        return agreement

    def _agreed(self, agreement: StepAgreement) -> None:
        self._agreed_drafts = agreement.drafts
        self._step_is_eager = agreement.graph_mode == GraphMode.NONE

    def _resolve_draft(self, vote: Vote) -> StepAgreement:
        if self._agreed_drafts is None or self._declared is None:
            return self.channel.sync(vote.vector(StepKind.DRAFT))
        index = min(self._draft_index, 1)
        self._draft_index += 1
        agreement = self._agreed_drafts[index]
        declared = self._declared.first if index == 0 else self._declared.next
        if agreement.idle[self.rank] and self._step_is_eager:
            declared = DraftVote(declared.tokens, declared.tokens, GraphMode.NONE)
        if vote.as_draft() != declared:
            self._fail(
                VoteChangedError(
                    f"rank {self.rank} declared its {'first' if index == 0 else 'next'} drafter forward as {declared}, "
                    f"but runs {vote.as_draft()}"
                )
            )
        if self.channel.counters is not None:
            self.channel.counters.count_reuse()
        return agreement

    def _fail(self, error: DPSyncError) -> NoReturn:
        self.abandon(error)
        raise error
