# SPDX-License-Identifier: Apache-2.0
"""A world of real processes, one per virtual device, that runs cases: started once, asked many times.

The parent never imports torch_npu. Nothing hangs: every answer has a deadline, and closing the world kills its processes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from tests.support.environment import clean_environment
from tests.support.npus import virtual_npu_command
from tests.support.processes import kill_session, start

from .cases import Case

START_SECONDS = 280  # the first start after a change compiles the virtual device
ANSWER_SECONDS = 60


class WorldError(RuntimeError):
    """A rank failed or did not answer."""


class World:
    """``size`` ranks on virtual devices of generation ``soc``."""

    def __init__(self, size: int, soc: str) -> None:
        self.size, self.soc = size, soc
        self._directory = tempfile.TemporaryDirectory()
        self._log = Path(self._directory.name) / "log"
        self._connections: list[Connection] = []
        self.broken: str | None = None
        address = str(Path(self._directory.name) / "socket")
        command = virtual_npu_command([sys.executable, "-m", "tests.moe.rank", str(size), address], size, soc)
        with Listener(address) as listener, self._log.open("w") as log:
            self._process = start(command, clean_environment(), stdout=log)
            try:
                self._accept(listener)
            except BaseException:
                self.close()
                raise

    def run(self, case: Case) -> float:
        """The largest error over all ranks. Raises ``WorldError`` with every rank's traceback."""
        if self.broken:
            raise WorldError(f"an earlier case broke this world: {self.broken}")
        for connection in self._connections:
            connection.send(case)
        errors, failures = [], []
        deadline = time.monotonic() + ANSWER_SECONDS
        for rank, connection in enumerate(self._connections):
            if not connection.poll(max(deadline - time.monotonic(), 0)):
                failures.append(f"rank {rank} did not answer within {ANSWER_SECONDS} s")
                continue
            try:
                _, answer = connection.recv()
            except EOFError:
                answer = "the process is gone"
            if isinstance(answer, float):
                errors.append(answer)
            else:
                failures.append(f"rank {rank}: {answer}")
        if failures:
            self.broken = str(case)
            raise WorldError("\n".join(failures) + "\n" + self._tail())
        return max(errors)

    def close(self) -> None:
        """End the ranks; kill what does not end."""
        for connection in self._connections:
            connection.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
        finally:
            kill_session(self._process)
            self._process.wait()
            self._directory.cleanup()

    def _accept(self, listener: Listener) -> None:
        listening = listener._listener._socket
        listening.settimeout(1)
        deadline = time.monotonic() + START_SECONDS
        connections: list[Connection] = []
        while len(connections) < self.size:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise WorldError(f"{self.size} ranks on {self.soc} did not start:\n{self._tail()}")
            try:
                connections.append(listener.accept())
            except TimeoutError:
                continue
        by_rank: dict[int, Connection] = {}
        for connection in connections:
            if not connection.poll(START_SECONDS):
                raise WorldError(f"a rank did not get ready within {START_SECONDS} s:\n{self._tail()}")
            rank, answer = connection.recv()
            if answer != "ready":
                raise WorldError(f"rank {rank}: {answer}")
            by_rank[rank] = connection
        self._connections = [by_rank[rank] for rank in range(self.size)]

    def _tail(self) -> str:
        return "\n".join(self._log.read_text().splitlines()[-40:])
