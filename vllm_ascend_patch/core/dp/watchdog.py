# SPDX-License-Identifier: Apache-2.0
"""The watchdog: a missing rank becomes an error that names it, instead of a hang with a green health check.

One thread writes this rank's heartbeat and reads the others', another judges silence, failure and delay: a store on a host
that is out of reach never answers, and must not silence the judge. Neither decides anything about steps. Errors are raised
in the main thread where that one waits for a step's vector (``check``); if the main thread is stuck somewhere it cannot be
reached (a device collective), the judge ends the process after a grace period.

A rank that is late is not missing while it is alive and busy outside a step (it reloads weights, saves state, profiles, or
somebody looks at it in a debugger): it is waited for, and the log says so. A late rank with a heartbeat is missing

* when it has been in one phase *inside* a step for the whole timeout: it hangs there, a step behind;
* when nothing keeps it and still nobody begins its step, seen for ``STALL_FACTOR`` timeouts on end: its engine is
  lost to it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable

from .board import STATUS_ALIVE, STATUS_FAILED, STATUS_LEFT, Board, PeerView, Progress
from .errors import DPSyncError, RankFailedError, RankMissingError

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""What the process ends with when its main thread is stuck behind a missing rank (EX_TEMPFAIL of sysexits.h)."""

_READ_SECONDS = 1.0
"""Longest wait for a fresh reading of the board."""

_TICK = 0.2
"""Seconds between looks at the processes of ranks on this host; their end is noticed without any heartbeat."""

STALL_FACTOR = 5
"""All ranks in the same phase of the same step for this many timeouts: stuck together, nobody is missing. Also the patience
with a rank that is idle while others wait for it: whether its engine is busy or lost cannot be seen from here."""


def _end_process() -> None:
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches the other ranks of one data-parallel group.

    Args:
        board: where ranks write.
        progress: this rank's; the main thread keeps it up to date.
        timeout: seconds after which a rank counts as missing while serving: one without heartbeat, or one that hangs in a
            step that the others have left.
        interval: seconds between heartbeats; by default a twentieth of the timeout, between 0.05 and 2.
        grace: seconds between finding a rank missing and ending the process, for the main thread to raise first; twice
            that for a rank that shut down in order, which a waiting main thread forgives as long.
        end_process: called when the main thread cannot be reached.
        hosts_store: the store lives in this process; when it fails, it stays until the others have read why.
    """

    def __init__(
        self,
        board: Board,
        progress: Progress,
        timeout: float,
        interval: float | None = None,
        grace: float = 5.0,
        end_process: Callable[[], None] = _end_process,
        hosts_store: bool = False,
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"watchdog timeout must be above 0 seconds, found {timeout}")
        self.board, self.progress, self.timeout = board, progress, timeout
        self.interval = interval if interval is not None else min(2.0, max(0.05, timeout / 20))
        self._grace = grace
        self._end_process = end_process
        self._hosts_store = hosts_store
        self._stop = threading.Event()
        self._lock = threading.Lock()  # the board's connection is used by this thread and by failing main threads
        self._store_error: str | None = None
        self._last_read = time.monotonic()
        self._trouble_since: float | None = None
        self._reached_until = 0.0  # the main thread knows of the trouble, and is on its way out until then
        self._failed = False
        self._stall_warned = 0.0
        self._seen_late = 0.0
        self._idle_since: dict[int, tuple[int, float]] = {}  # rank: the step that it is late for, since when
        self._left_since: float | None = None
        self._told_left = False
        self._asked = self._answered = 0  # operations of the store
        self._unanswered: tuple[int, float] = (0, 0.0)  # the one under way, and for how long the judge has seen it
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dp-watchdog", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="dp-heartbeat", daemon=True)

    def start(self) -> None:
        with self._lock:
            self.board.write(self.progress)
        self._heart.start()
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Leave in order: the others are told that this rank shut down. Safe to call twice."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._wake.set()
        atexit.unregister(self.stop)
        for thread in (self._thread, self._heart):
            if thread.is_alive():
                thread.join(timeout=2 * self.interval + 1)
        if not self._failed:
            self._write(STATUS_LEFT, "")

    def report_failure(self, reason: str) -> None:
        """Tell the others at once that this rank will not go on, and why. Called on the way of an exception; never
        raises, the first report stands, and so does having left."""
        if not self._failed and not self._stop.is_set():
            self._failed = True
            stay = 2.5 * self.interval if self._hosts_store else 0.0
            self._reached_until = time.monotonic() + stay + self._grace
            self._write(STATUS_FAILED, reason)
            time.sleep(stay)

    def check(self, waited: float) -> None:
        """Called by the main thread again and again while it waits for the others' vectors.

        Args:
            waited: seconds it has waited so far.

        Raises:
            RankFailedError: a rank reported an error.
            RankMissingError: a rank is silent, left, or hangs a step behind for more than the timeout.
        """
        error = self._find_trouble()
        if error is not None and not (isinstance(error, _LeftError) and waited < self._grace):
            raise error
        late = [peer for peer in self.board.peers() if peer.posted < self.progress.posted]
        overdue = self._overdue(late)
        now = time.monotonic()
        if late:
            self._seen_late = now
        if waited < self.timeout:
            return
        start = f"data-parallel step {self.progress.posted}: rank {self.board.rank}"
        if self.progress.serving and (overdue or (not late and now - self._seen_late >= self.timeout)):
            names = "; ".join(p.describe() for p in overdue) or (
                "no rank is behind on the board: all sent their vector, the transport lost it"
            )
            raise RankMissingError(
                f"{start} waited {waited:.1f} s (limit {self.timeout:g} s, VLLM_ASCEND_PATCH_DP_TIMEOUT) for {names}"
                f"{self._board_age()}"
            )
        if now - self._stall_warned >= self.timeout:
            self._stall_warned = now
            names = "; ".join(p.describe() for p in late) or "the last vector to arrive"
            if self.progress.serving:
                logger.warning("%s has waited %.1f s for %s. %s", start, waited, names, self._patience(late))
            else:  # ranks load, compile and capture at their own pace
                logger.warning("still starting: %s has waited %.1f s for %s", start, waited, names)

    def _overdue(self, late: list[PeerView]) -> list[PeerView]:
        """Those of the late ranks that are proved to be a step behind. To be called again and again while they are late."""
        now, step = time.monotonic(), self.progress.posted
        idle = {p.rank for p in late if p.idle}
        known = {rank: entry for rank, entry in self._idle_since.items() if rank in idle and entry[0] == step}
        self._idle_since = {rank: known.get(rank, (step, now)) for rank in idle}
        return [
            p
            for p in late
            if (p.in_step and p.phase_seconds + p.silent_seconds >= self.timeout)
            or (p.idle and now - self._idle_since[p.rank][1] >= STALL_FACTOR * self.timeout)
        ]

    def _patience(self, late: list[PeerView]) -> str:
        """What becomes of a wait for ranks that are alive."""
        if any(p.idle for p in late):
            return (
                f"A rank that is idle while others wait for it is an error after {STALL_FACTOR * self.timeout:g} s: its "
                "engine does not begin the step"
            )
        return "It is alive, so this rank goes on waiting"

    def explain(self, error: BaseException, what: str = "the transport") -> DPSyncError:
        """Turn a broken transport (a closed socket), or another collective, into an error that names the rank behind it.

        A dead process on this host is seen at once, one on another host by its missing heartbeat, a few intervals later.
        """
        limit = 3.5 * self.interval
        deadline = time.monotonic() + limit + self.interval
        self._reached_until = deadline + self._grace
        suspects: list[PeerView] = []
        while time.monotonic() < deadline and not suspects:
            self._read()  # the thread reads now and then; the transport breaks at once
            peers = self._peers()
            suspects = self._with_store_host(_ended(peers), peers) or [p for p in peers if p.silent_seconds > limit]
            if not suspects and self._store_error is not None:  # nothing more will be read
                suspects = [p for p in peers if p.rank == 0]
            if not suspects:
                time.sleep(min(0.1, self.interval / 2))
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        named = "; ".join(p.describe() for p in suspects) or (
            "no rank is silent: " + "; ".join(p.describe() for p in self.board.peers())
        )
        kind = RankFailedError if any(p.status == STATUS_FAILED for p in suspects) else RankMissingError
        return kind(f"data-parallel step {self.progress.posted}: {what} broke ({cause}). Behind it: {named}")

    def ended_peers(self) -> list[PeerView]:
        """Ranks that are known to have failed, left or died. For naming a cause next to another error."""
        return _ended(self._peers())

    # -- the thread ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        # A lost store does not come back, and each try would log a stack trace.
        while not self._stop.is_set() and self._store_error is None:
            self._write(None, "")
            self._read()
            self._wake.wait(self.interval)
            self._wake.clear()

    def _run(self) -> None:
        tick = min(self.interval, _TICK)
        while not self._stop.wait(tick):
            try:
                self._notice_silent_store(tick)
                self._judge()
            except Exception:  # a watchdog that dies in silence is worse than none
                logger.exception("the data-parallel watchdog met an unexpected error and goes on")

    def _notice_silent_store(self, tick: float) -> None:
        """A store whose host is gone without a word leaves its clients waiting. Ticks are counted, not the clock read: this
        process's own pause is not the store's silence."""
        asked = self._asked
        if asked == self._answered:
            self._unanswered = (asked, 0.0)
            return
        before, seconds = self._unanswered
        self._unanswered = (asked, seconds + tick if asked == before else 0.0)
        if self._unanswered[1] > self._patience_with_silence:
            self._note_store_error(TimeoutError(f"it has not answered for {self._unanswered[1]:.1f} s"))

    def _judge(self) -> None:
        error = self._find_trouble()
        stuck = self.progress.blocking
        if error is None and stuck and self.progress.serving:
            error = self._find_stall()
        if error is None:
            self._trouble_since = None
            return
        now = time.monotonic()
        if isinstance(error, _LeftError) and not stuck:
            self._trouble_since = None
            self._tell_left(error, now)
            return
        if self._trouble_since is None:
            self._trouble_since = now
            if stuck:  # an idle rank may be on its own way out, as when all ranks shut down
                logger.critical("rank %d cannot go on: %s", self.board.rank, error)
            return
        # A main thread that waits gives a rank that left the same grace, and shall be the first to raise.
        patience = self._grace * (2 if isinstance(error, _LeftError) else 1)
        if now > max(self._trouble_since + patience, self._reached_until):
            if not stuck:
                logger.critical("rank %d cannot go on: %s", self.board.rank, error)
            logger.critical(
                "rank %d: still in phase '%s' after %.0f s of grace; ending the process with code %d",
                self.board.rank,
                self.progress.phase,
                now - self._trouble_since,
                EXIT_CODE,
            )
            self.report_failure(str(error))
            self._end_process()

    def _tell_left(self, error: DPSyncError, now: float) -> None:
        """An idle rank goes on without the one that left, but the next request cannot be answered: say so once, unless this
        rank is on its own way out as well."""
        if self._left_since is None:
            self._left_since = now
        if not self._told_left and self.progress.serving and now - self._left_since > self._grace:
            self._told_left = True
            logger.critical(
                "rank %d is idle and cannot answer another request: %s. Start the whole deployment again",
                self.board.rank,
                error,
            )

    def _peers(self) -> list[PeerView]:
        peers = self.board.peers()
        if any(p.status == STATUS_ALIVE and p.process_gone for p in peers):
            self._read_soon()  # it may have written why just before it ended
            peers = self.board.peers()
        return peers

    def _find_trouble(self) -> DPSyncError | None:
        peers = self._peers()
        failed = [p for p in peers if p.status == STATUS_FAILED]
        if failed:
            return RankFailedError("; ".join(p.describe() for p in failed))
        left = [p for p in peers if p.status == STATUS_LEFT]
        gone = [p for p in peers if p.status == STATUS_ALIVE and p.process_gone]
        if gone:
            return RankMissingError("; ".join(p.describe() for p in self._with_store_host(gone, peers)))
        if self._store_error is not None and not left:
            return RankMissingError(
                f"lost the rendezvous store, which lives in the process of the first rank: {self._store_error}. "
                + "; ".join(p.describe() for p in peers)
            )
        silent = [p for p in peers if p.status not in (STATUS_FAILED, STATUS_LEFT) and self._is_silent(p)]
        if silent:
            return RankMissingError(
                f"no heartbeat for more than {self.timeout:g} s from " + "; ".join(p.describe() for p in silent)
            )
        if left:
            return _LeftError("; ".join(p.describe() for p in left))
        return None

    def _with_store_host(self, ended: list[PeerView], peers: list[PeerView]) -> list[PeerView]:
        """``ended``, behind the rank whose process has the store where that is lost: the others may have ended because of
        it, and it may have ended before its record was read."""
        if not ended or self._store_error is None:
            return ended
        return [p for p in peers if p.rank == 0 and p not in ended] + ended

    def _is_silent(self, peer: PeerView) -> bool:
        # Measured only as far as this rank was itself able to read: its own pause is not the peer's silence.
        return peer.silent_seconds - (time.monotonic() - self._last_read) > self._patience_with_silence

    @property
    def _patience_with_silence(self) -> float:
        return max(self.timeout, 5 * self.interval)

    def _find_stall(self) -> DPSyncError | None:
        """The main thread is inside the step for longer than the timeout: is somebody behind, or all stuck alike?"""
        stuck = time.monotonic() - self.progress.since
        if stuck < self.timeout or self.progress.phase == "wait":  # `check` judges waiting
            return None
        progress = self.progress
        where = (
            f"rank {self.board.rank} has been in phase '{progress.phase}' of step {progress.posted} for {stuck:.0f} s"
        )
        peers = self.board.peers()
        behind = [p for p in peers if p.posted < progress.posted]
        overdue = self._overdue(behind)
        if overdue:
            return RankMissingError(f"{where}; behind it: " + "; ".join(p.describe() for p in overdue))
        table = "; ".join(p.describe() for p in peers)
        if not behind and stuck > STALL_FACTOR * self.timeout:
            return RankMissingError(f"{where} and no rank moves: {table}")
        now = time.monotonic()
        if now - self._stall_warned >= self.timeout:
            self._stall_warned = now
            if behind:
                names = "; ".join(p.describe() for p in behind)
                logger.warning("%s; behind it: %s. %s", where, names, self._patience(behind))
            else:
                logger.warning("%s; no rank is behind: %s", where, table)
        return None

    def _write(self, status: str | None, reason: str) -> None:
        def write() -> None:
            if status is not None:
                self.board.write(self.progress, status, reason)
            elif not self._failed:
                self.board.write(self.progress)

        self._ask_store(write)

    def _read(self) -> None:
        if self._ask_store(self.board.refresh):
            self._last_read = time.monotonic()

    def _read_soon(self) -> None:
        """A reading that began after this call, by the thread that may wait for the store."""
        if not self._heart.is_alive():
            self._read()
            return
        before, deadline = self._last_read, time.monotonic() + _READ_SECONDS
        self._wake.set()
        while self._last_read == before and self._store_error is None and time.monotonic() < deadline:
            time.sleep(0.005)

    def _ask_store(self, operation: Callable[[], None]) -> bool:
        """Whether it was done. One that never ends is the judge's to notice."""
        if self._store_error is not None or not self._lock.acquire(timeout=self._patience_with_silence):
            return False
        try:
            self._asked += 1
            operation()
            return True
        except Exception as error:
            self._note_store_error(error)
            return False
        finally:
            self._answered = self._asked
            self._lock.release()

    def _note_store_error(self, error: Exception) -> None:
        if self._store_error is None and not self._stop.is_set():
            self._store_error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _board_age(self) -> str:
        age = time.monotonic() - self._last_read
        return f" (board last read {age:.1f} s ago)" if age > 5 * self.interval else ""


def _ended(peers: list[PeerView]) -> list[PeerView]:
    return [p for p in peers if p.status != STATUS_ALIVE] or [p for p in peers if p.process_gone]


class _LeftError(RankMissingError):
    """A rank shut down in order. An error only for a rank that still needs it."""
