# SPDX-License-Identifier: Apache-2.0
"""The step trace: Chrome/Perfetto events of one rank, written by a thread of the process itself.

Writing only; reading and summarising is ``commands/trace.py``. Off by default, and then every call is one test of a module
variable. The file is the "JSON array" flavour of the Chrome trace format, whose closing bracket is optional, so the trace
of a killed process still opens; so does that of a process that hangs, up to the moment at which it began to.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_WRITE_SECONDS = 0.5
"""What a process that is killed may lose of its trace."""


class _Writer:
    def __init__(self, path: Path, rank: int, label: str) -> None:
        self.path, self.rank = path, rank
        self._pid = os.getpid()
        self._events: deque[str] = deque()
        self._closing = threading.Event()
        # perf_counter is cheap and monotonic; the offset puts ranks of one host on one time axis.
        self._offset_ns = time.time_ns() - time.perf_counter_ns()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a forked process must not inherit half a line that it would write when it ends.
        self._file = path.open("wb", buffering=0)
        self._file.write(b"[\n")
        self._append({"ph": "M", "name": "process_name", "args": {"name": label}})
        self._append({"ph": "M", "name": "process_sort_index", "args": {"sort_index": rank}})
        self._thread = threading.Thread(target=self._write_now_and_then, name="step trace", daemon=True)
        self._thread.start()

    def complete(self, name: str, start_ns: int, end_ns: int, args: dict[str, Any] | None) -> None:
        event: dict[str, Any] = {
            "ph": "X",
            "name": name,
            "ts": (start_ns + self._offset_ns) / 1e3,
            "dur": (end_ns - start_ns) / 1e3,
        }
        if args:
            event["args"] = args
        self._append(event)

    def instant(self, name: str, args: dict[str, Any] | None) -> None:
        event = {"ph": "i", "s": "p", "name": name, "ts": (time.perf_counter_ns() + self._offset_ns) / 1e3}
        if args:
            event["args"] = args
        self._append(event)

    def _append(self, event: dict[str, Any]) -> None:
        event["pid"] = self.rank
        event["tid"] = self._pid
        self._events.append(json.dumps(event, separators=(",", ":"), default=str))

    def _write_now_and_then(self) -> None:
        while not self._closing.wait(_WRITE_SECONDS):
            self._write()

    def _write(self) -> None:
        lines = [self._events.popleft() for _ in range(len(self._events))]
        try:
            if lines:
                self._file.write((",\n".join(lines) + ",\n").encode())
        except OSError as error:
            # A full disk costs the trace, not the server; nothing may pile up in memory either.
            logger.error("the trace %s ends here: %s", self.path, error.strerror)
            self._closing.set()
            _forget()

    def close(self) -> None:
        """Write what is left. The writing thread ends first: nobody else takes events."""
        self._closing.set()
        self._thread.join()
        self._write()
        self._file.close()


_writer: _Writer | None = None


def rank_path(path: str | os.PathLike[str], rank: int) -> Path:
    """One file per rank: ``{rank}`` and ``{pid}`` are filled in.

    Without ``{rank}``, ``trace.json`` becomes ``trace.rank0.json``.
    """
    base = Path(str(path).replace("{pid}", str(os.getpid())))
    if "{rank}" in str(base):
        return Path(str(base).replace("{rank}", str(rank)))
    return base.with_name(f"{base.stem}.rank{rank}{base.suffix or '.json'}")


def start(path: str | os.PathLike[str], rank: int, label: str = "") -> Path:
    """Begin writing this process's trace to ``rank_path(path, rank)``. An earlier trace of the process is closed."""
    global _writer
    stop()
    target = rank_path(path, rank)
    _writer = _Writer(target, rank, label or f"DP rank {rank}")
    atexit.register(stop)
    return target


def stop() -> None:
    """Write what is buffered and close. Safe to call when nothing is being traced."""
    global _writer
    writer, _writer = _writer, None
    if writer is not None:
        atexit.unregister(stop)
        writer.close()


def _forget() -> None:
    """No more events, and nothing written. In a forked process the trace is its parent's, and so is the writing thread."""
    global _writer
    _writer = None


os.register_at_fork(after_in_child=_forget)


def enabled() -> bool:
    return _writer is not None


def complete(name: str, start_ns: int, end_ns: int, args: dict[str, Any] | None = None) -> None:
    """An event with a duration. Times are ``time.perf_counter_ns()``."""
    if _writer is not None:
        _writer.complete(name, start_ns, end_ns, args)


def instant(name: str, args: dict[str, Any] | None = None) -> None:
    """An event without a duration, e.g. the choice of a communication method."""
    if _writer is not None:
        _writer.instant(name, args)


@contextlib.contextmanager
def span(name: str, args: dict[str, Any] | None = None) -> Iterator[None]:
    """Trace the block as one event, also when it raises. ``args`` may be filled inside the block."""
    if _writer is None:
        yield
        return
    start_ns = time.perf_counter_ns()
    try:
        yield
    finally:
        complete(name, start_ns, time.perf_counter_ns(), args)
