# SPDX-License-Identifier: Apache-2.0
"""One rank's end of the step sync: post a vector, wait for the agreement. One exchange per pair, in order.

Ties vector, transport, watchdog, counters and trace together. Which forward needs a vector is the caller's business
(``session.py``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from vllm_ascend_patch.core import trace

from .agreement import StepAgreement, agree
from .board import Progress
from .errors import DPSyncError
from .metrics import StepCounters
from .transport import Transport
from .vector import NUM_FIELDS, StepVector, pack
from .watchdog import Watchdog


@dataclass(slots=True)
class Posted:
    """A vector under way."""

    vector: StepVector
    sequence: int
    handle: Any
    posted_ns: int

    def details(self, agreement: StepAgreement, rank: int) -> dict[str, Any]:
        """What the trace says of the agreement that followed, as this rank sees it."""
        return {
            "step": self.sequence,
            "kind": agreement.kind.name.lower(),
            "tokens": agreement.active_tokens[rank],
            "padded": agreement.padded_tokens[rank],
            "max_tokens": agreement.max_tokens,
            "graph_mode": int(agreement.graph_mode),
            "prefill": agreement.any_prefill,
            "idle": agreement.idle[rank],
        }


class DPChannel:
    """Posts vectors and waits for agreements.

    Args:
        transport: sized for ``NUM_FIELDS`` rows.
        progress: what the heartbeat publishes; updated here.
        watchdog: None only where the caller can afford to hang (never in an engine).
        num_microbatches: parts of a micro-batched step.
        counters: None to count nothing.
        padding_when_eager: see ``agree``.
    """

    def __init__(
        self,
        transport: Transport,
        progress: Progress | None = None,
        watchdog: Watchdog | None = None,
        num_microbatches: int = 2,
        counters: StepCounters | None = None,
        padding_when_eager: bool = True,
    ) -> None:
        if transport.fields != NUM_FIELDS:
            raise ValueError(f"transport carries {transport.fields} rows, the step vector has {NUM_FIELDS}")
        self.transport = transport
        self.progress = progress or Progress()
        self.watchdog = watchdog
        self.num_microbatches = num_microbatches
        self.counters = counters
        self.padding_when_eager = padding_when_eager
        self._outstanding: Posted | None = None

    @property
    def posted(self) -> int:
        """Vectors sent so far."""
        return self.progress.posted

    def post(self, vector: StepVector) -> Posted:
        """Send this rank's vector. Does not wait for anyone.

        Raises:
            DPSyncError: the previous vector was never waited for; a second one would shift this rank by a step.
        """
        if self._outstanding is not None:
            raise DPSyncError(
                f"a second vector was posted while #{self._outstanding.sequence} is still under way on rank "
                f"{self.transport.rank}: {self._outstanding.vector} and now {vector}"
            )
        start = time.perf_counter_ns()
        sequence = self.progress.posted
        pack(vector, sequence, self.transport.column())
        self.progress.posted = sequence + 1
        handle = self.transport.post()
        end = time.perf_counter_ns()
        if trace.enabled():
            trace.complete("post", start, end, {"step": sequence, "kind": vector.kind.name.lower()})
        self._outstanding = Posted(vector, sequence, handle, end)
        return self._outstanding

    def wait(self, posted: Posted, early: bool = True) -> StepAgreement:
        """Wait for all ranks' vectors of this step and decide.

        Args:
            posted: what ``post`` returned.
            early: whether there was host work between post and wait; for the trace.

        Raises:
            RankMissingError, RankFailedError: see ``Watchdog.check``.
            StepMismatchError: see ``agree``.
        """
        if posted is not self._outstanding:
            raise DPSyncError(f"vector #{posted.sequence} is not the one under way on rank {self.transport.rank}")
        previous = (self.progress.phase, self.progress.blocking)
        self.progress.enter("wait", blocking=True)
        start = time.perf_counter_ns()
        try:
            rows = self.transport.wait(posted.handle, self._check)
        except DPSyncError:
            raise
        except RuntimeError as error:
            if self.watchdog is None:
                raise
            raise self.watchdog.explain(error) from error
        end = time.perf_counter_ns()
        self._outstanding = None
        agreement = agree(rows, self.num_microbatches, self.padding_when_eager)
        self.progress.enter(*previous)
        if self.counters is not None:
            self.counters.count(agreement, (end - start) * 1e-9, (start - posted.posted_ns) * 1e-9)
        if trace.enabled():
            hidden = {"early": early, "hidden_us": round((start - posted.posted_ns) / 1e3, 1)}
            details = posted.details(agreement, self.transport.rank)
            trace.complete("wait", start, end, details | hidden | {"transport": self.transport.name})
        return agreement

    def sync(self, vector: StepVector) -> StepAgreement:
        """Post and wait at once, for forwards without host work to hide behind."""
        return self.wait(self.post(vector), early=False)

    def abandon(self, seconds: float = 1.0) -> None:
        """After an exception between post and wait: let the collective end if the others still join it, so that its buffers
        are not freed under it. Never raises."""
        posted, self._outstanding = self._outstanding, None
        if posted is None:
            return

        def give_up(waited: float) -> None:
            if waited > seconds:
                raise TimeoutError

        try:
            self.transport.wait(posted.handle, give_up)
        except Exception:
            return

    def _check(self, waited: float) -> None:
        if self.watchdog is not None:
            self.watchdog.check(waited)
