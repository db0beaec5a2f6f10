# SPDX-License-Identifier: Apache-2.0
"""The step trace: Chrome/Perfetto events of one rank, buffered and written by the process itself.

Writing only; reading and summarising is `trace_report.py`. Off by default, and then every call is one test of a module
variable. The file is the "JSON array" flavour of the Chrome trace format, whose closing bracket is optional, so the trace
of a killed process still opens.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_FLUSH_EVENTS = 512
_FLUSH_SECONDS = 5.0


class _Writer:
    def __init__(self, path: Path, rank: int, label: str) -> None:
        self.path, self.rank = path, rank
        self._buffer: list[str] = []
        self._lock = threading.Lock()
        self._last_flush = time.monotonic()
        self._pid = os.getpid()
        # perf_counter is cheap and monotonic; the offset puts ranks of one host on one time axis.
        self._offset_ns = time.time_ns() - time.perf_counter_ns()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO | None = path.open("w", encoding="utf-8")
        self._file.write("[\n")
        self._append({"ph": "M", "name": "process_name", "args": {"name": label}})
        self._append({"ph": "M", "name": "process_sort_index", "args": {"sort_index": rank}})

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
        self._buffer.append(json.dumps(event, separators=(",", ":"), default=str))
        if len(self._buffer) >= _FLUSH_EVENTS or time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            buffer, self._buffer = self._buffer, []
            self._last_flush = time.monotonic()
            if buffer and self._file is not None and os.getpid() == self._pid:
                self._file.write(",\n".join(buffer) + ",\n")
                self._file.flush()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


_writer: _Writer | None = None


def rank_path(path: str | os.PathLike[str], rank: int) -> Path:
    """One file per rank: `{rank}` and `{pid}` are filled in; without `{rank}`, `trace.json` becomes `trace.rank0.json`."""
    base = Path(str(path).replace("{pid}", str(os.getpid())))
    if "{rank}" in str(base):
        return Path(str(base).replace("{rank}", str(rank)))
    return base.with_name(f"{base.stem}.rank{rank}{base.suffix or '.json'}")


def start(path: str | os.PathLike[str], rank: int, label: str = "") -> Path:
    """Begin writing this process's trace to `rank_path(path, rank)`. An earlier trace of the process is closed."""
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


def enabled() -> bool:
    return _writer is not None


def complete(name: str, start_ns: int, end_ns: int, args: dict[str, Any] | None = None) -> None:
    """An event with a duration. Times are `time.perf_counter_ns()`."""
    if _writer is not None:
        _writer.complete(name, start_ns, end_ns, args)


def instant(name: str, args: dict[str, Any] | None = None) -> None:
    """An event without a duration, e.g. the choice of a communication method."""
    if _writer is not None:
        _writer.instant(name, args)


@contextlib.contextmanager
def span(name: str, args: dict[str, Any] | None = None) -> Iterator[None]:
    """Trace the block as one event, also when it raises. `args` may be filled inside the block."""
    if _writer is None:
        yield
        return
    start_ns = time.perf_counter_ns()
    try:
        yield
    finally:
        complete(name, start_ns, time.perf_counter_ns(), args)


def main(argv: list[str]) -> int:
    """The `trace` command; see `trace_report.py`."""
    from .trace_report import main as report

    return report(argv)
