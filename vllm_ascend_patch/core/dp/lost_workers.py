# SPDX-License-Identifier: Apache-2.0
"""Ends a process that waits for others after one of its own workers has gone. Knows neither groups nor ranks.

A worker that has lost another rank names it and ends itself (``watchdog.py``). Its engine may be inside a collective of its
own meanwhile, with an engine that a pulled cable or a paused host keeps from answering: nothing breaks, nobody wakes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess

from .watchdog import EXIT_CODE

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""From a worker's end to this process's, for the collective to break by itself."""

_TICK = 0.2


def _end_process() -> None:
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def ends_without(
    workers: Sequence[BaseProcess],
    where: str,
    grace: float = GRACE_SECONDS,
    end_process: Callable[[], None] = _end_process,
) -> Iterator[None]:
    """While it is active, the end of any of ``workers`` ends this process, ``grace`` seconds later.

    Args:
        workers: alive now. Without any, nothing is watched.
        where: what this process waits in, for the log.
        end_process: called when the time is over.
    """
    if not workers:
        yield
        return
    left = threading.Event()

    def watch() -> None:
        lost_since: float | None = None
        while not left.wait(_TICK):
            lost = [worker for worker in workers if not worker.is_alive()]
            if not lost:
                continue
            lost_since = lost_since if lost_since is not None else time.monotonic()
            if time.monotonic() - lost_since >= grace:
                logger.critical(
                    "%s has ended, its log says why; %.0f s later this process is still in %s, with a process that does not "
                    "answer: ending it with code %d",
                    ", ".join(f"{worker.name} (pid {worker.pid})" for worker in lost),
                    grace,
                    where,
                    EXIT_CODE,
                )
                end_process()
                return

    threading.Thread(target=watch, name="lost-workers", daemon=True).start()
    try:
        yield
    finally:
        left.set()
