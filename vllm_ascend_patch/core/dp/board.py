# SPDX-License-Identifier: Apache-2.0
"""The board: where every rank writes what it is doing and reads what the others last wrote.

Only storage and the view of it live here (a ``torch.distributed`` store of its own connection); judging what is seen is
the watchdog's. Clocks are never compared across machines: a reader measures how long ago a record last *changed*.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .activity import NO_LANDMARKS, Activity, Landmarks, activity_of

STATUS_ALIVE = "alive"
STATUS_FAILED = "failed"
STATUS_LEFT = "left"


@dataclass(slots=True)
class Progress:
    """Where this rank's main thread is. Written by the main thread, read by the heartbeat; plain attributes, no lock.

    Attributes:
        posted: step vectors sent so far.
        phase: what the main thread does now, e.g. "prepare", "wait", "forward".
        since: ``time.monotonic()`` at the phase's beginning.
        serving: False while the engine starts (loading, profiling, capture), where ranks may differ by minutes.
        blocking: whether the phase is part of a step, and can only end if the other ranks take part.
        thread: the main thread, as it was when the phase began.
    """

    posted: int = 0
    phase: str = "start-up"
    since: float = 0.0
    serving: bool = False
    blocking: bool = False
    thread: int = 0

    def enter(self, phase: str, blocking: bool) -> None:
        self.phase, self.blocking, self.since = phase, blocking, time.monotonic()
        self.thread = threading.get_ident()


@dataclass(frozen=True, slots=True)
class PeerView:
    """What is known of one rank.

    Attributes:
        in_step: it is inside a step, as far as its record says.
        doing: what its main thread ran when it last wrote; may be empty.
        idle: nothing kept it from a step when it last wrote: nobody had called it.
        silent_seconds: since its record last changed, on this reader's clock.
        process_gone: its process ran on this host, was seen alive, and has ended.
        phase_seconds: how long it had been in its phase when it last wrote.
    """

    rank: int
    status: str
    reason: str
    posted: int
    phase: str
    phase_seconds: float
    silent_seconds: float
    host: str
    pid: int
    in_step: bool = False
    doing: str = ""
    idle: bool = False
    process_gone: bool = False

    def describe(self) -> str:
        text = (
            f"rank {self.rank} (pid {self.pid} on {self.host}), last seen in phase '{self.phase}' of step {self.posted}"
        )
        if self.status == STATUS_FAILED:
            return f"{text}, failed: {self.reason}"
        if self.status == STATUS_LEFT:
            return f"{text}, shut down"
        if self.process_gone:
            return f"{text}, its process is gone"
        doing = f"; {self.doing}" if self.doing else ""
        return f"{text} ({self.phase_seconds:.1f} s in it{doing}), silent for {self.silent_seconds:.1f} s"


class Board:
    """One record per rank in a store.

    Args:
        store: a store all ranks of the data-parallel group reach, not used by any other thread (see ``private_store``).
        rank: this rank in the group.
        size: ranks in the group.
        landmarks: how this rank's main thread is read, see ``activity.py``.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, landmarks: Landmarks = NO_LANDMARKS) -> None:
        self.rank, self.size = rank, size
        self._landmarks = landmarks
        self._store = store
        self._keys = [f"rank/{r}" for r in range(size)]
        self._raw: list[bytes] = [b""] * size
        self._changed = [time.monotonic()] * size
        self._records: list[dict[str, Any]] = [{} for _ in range(size)]
        self._beat = 0
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._seen_alive: set[tuple[int, int]] = set()

    def write(self, progress: Progress, status: str = STATUS_ALIVE, reason: str = "") -> None:
        """Publish this rank's record. Raises what the store raises when its host is gone."""
        self._beat += 1
        waiting = progress.phase == "wait"  # says enough
        activity = Activity() if waiting else activity_of(progress.thread, self._landmarks)
        record = {
            "beat": self._beat,
            "status": status,
            "reason": reason[:2000],
            "posted": progress.posted,
            "phase": progress.phase,
            "age": round(time.monotonic() - progress.since, 1) if progress.since else 0.0,
            "in_step": progress.blocking,
            "doing": activity.text,
            "idle": activity.idle and not progress.blocking,
            "host": self._host,
            "pid": self._pid,
        }
        self._store.set(self._keys[self.rank], json.dumps(record))

    def refresh(self) -> None:
        """Read all records. Ranks that never wrote keep an empty one. Raises what the store raises."""
        try:
            values = self._store.multi_get(self._keys) if self._store.check(self._keys) else self._read_present()
        except NotImplementedError:  # a store without multi_get (HashStore in tests)
            values = self._read_present()
        now = time.monotonic()
        for rank, raw in enumerate(values):
            if raw != self._raw[rank]:
                self._raw[rank], self._changed[rank] = raw, now
                self._records[rank] = json.loads(raw) if raw else {}

    def peer(self, rank: int) -> PeerView:
        record = self._records[rank]
        return PeerView(
            rank=rank,
            status=record.get("status", STATUS_ALIVE),
            reason=record.get("reason", ""),
            posted=record.get("posted", 0),
            phase=record.get("phase", "not started"),
            phase_seconds=record.get("age", 0.0),
            silent_seconds=time.monotonic() - self._changed[rank],
            host=record.get("host", "?"),
            pid=record.get("pid", 0),
            in_step=record.get("in_step", False),
            doing=record.get("doing", ""),
            idle=record.get("idle", False),
            process_gone=self._process_gone(rank, record),
        )

    def peers(self) -> list[PeerView]:
        return [self.peer(rank) for rank in range(self.size) if rank != self.rank]

    def _process_gone(self, rank: int, record: dict[str, Any]) -> bool:
        """Containers may share a host name without sharing process ids, so a process counts as ended only if this one saw
        it alive before."""
        pid = record.get("pid", 0)
        if not pid or record.get("host") != self._host:
            return False
        if process_runs(pid):
            self._seen_alive.add((rank, pid))
            return False
        return (rank, pid) in self._seen_alive

    def _read_present(self) -> list[bytes]:
        return [self._store.get(key) if self._store.check([key]) else b"" for key in self._keys]


def process_runs(pid: int) -> bool:
    """Whether a process of this process id space has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def base_store(store: dist.Store) -> dist.Store:
    """The store below all prefixes."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store


def private_store(store: dist.Store, prefix: str, timeout: timedelta) -> dist.Store:
    """A prefixed store with a connection of its own, so that a thread's reads never queue behind the main thread's
    blocking ones.

    Args:
        store: any store of the job, e.g. the default process group's; wrapped prefix stores are looked through.
        prefix: keeps the keys apart from everybody else's.
        timeout: for operations on the new connection.
    """
    base = base_store(store)
    if isinstance(base, dist.TCPStore):
        base = dist.TCPStore(base.host, base.port, is_master=False, wait_for_workers=False, timeout=timeout)
    return dist.PrefixStore(prefix, base)
