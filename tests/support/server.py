# SPDX-License-Identifier: Apache-2.0
"""Starts stock vLLM's OpenAI-compatible server on NPUs, waits until it answers, and leaves nothing behind when it ends.

Used by the demo and by the tests of serving. Knows nothing of what is asked of the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import psutil
import requests

from .environment import free_port
from .hosts import Host
from .npus import has_real_npus, npu_command

_STOP_SECONDS = 40.0  # vLLM joins its engines for a while before it gives up on them
_INTERRUPTED_SECONDS = 10.0  # with requests in flight vLLM's API server waits for its clients without end


class Server:
    """``vllm serve MODEL …`` in a session of its own; use as a context manager.

    Args:
        model: folder or name of the checkpoint.
        arguments: further arguments of ``vllm serve``.
        environment: added to this process's environment.
        log: file that takes the server's output.
        devices, soc: of the virtual NPU, where there is no real one.
        on_line: called with each line that the server prints while it starts.
        host: of two on this machine, the one that it runs on; without, it runs on this machine.
    """

    def __init__(
        self,
        model: str | Path,
        arguments: list[str],
        environment: Mapping[str, str],
        log: Path,
        devices: int,
        soc: str = "A2",
        on_line: Callable[[str], None] = lambda line: None,
        host: Host | None = None,
    ) -> None:
        self.port = free_port()
        self.address = host.address if host is not None else "127.0.0.1"
        self.url = f"http://{self.address}:{self.port}"
        self._host = host
        self.log = log
        self._on_line = on_line
        vllm = str(Path(sys.executable).with_name("vllm"))
        serve = [vllm, "serve", str(model), "--host", self.address, "--port", str(self.port), *arguments]
        command = npu_command(serve, devices, soc)
        self._command = command if host is None else host.command(command)
        self._environment = {**os.environ, **environment}
        if not has_real_npus():
            # Engines that compute on the host must not each take all of its cores; older vLLM does not see to that.
            self._environment.setdefault("OMP_NUM_THREADS", "1")
        self._process: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}
        self._shared_memory: set[str] = set()

    def __enter__(self) -> Server:
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(_STOP_SECONDS if kind is None else _INTERRUPTED_SECONDS)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server has not been started"
        return self._process

    def wait_until_ready(self, seconds: float) -> None:
        """Return once ``/health`` answers; raise with the end of the log when the server ends or time runs out."""
        deadline = time.monotonic() + seconds
        lines = self._new_lines()
        while time.monotonic() < deadline:
            for line in lines:
                if line is None:
                    break
                self._on_line(line)
            self.family()
            code = self.process.poll()
            if code is not None:
                raise RuntimeError(f"the server ended with exit code {code} before it was ready\n{self.log_tail()}")
            with contextlib.suppress(requests.RequestException), self.reach():
                if requests.get(f"{self.url}/health", timeout=2).ok:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"the server was not ready within {seconds:.0f} s\n{self.log_tail()}")

    def reach(self) -> contextlib.AbstractContextManager[None]:
        """While it is active, the calling thread has the network in which the server answers."""
        return contextlib.nullcontext() if self._host is None else self._host.inside()

    def family(self) -> list[psutil.Process]:
        """Every process that the server has started so far and that is alive (found by session, remembered)."""
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if pid not in self._family and os.getsid(pid) == self.process.pid:
                    self._family[pid] = psutil.Process(pid)
        return [p for p in self._family.values() if _alive(p)]

    def note_shared_memory(self) -> None:
        """Remember the shared memory that the server's processes have now, for ``leftovers``; ``stop`` does it, too."""
        for process in self.family():
            self._shared_memory |= _shared_memory_of(process)

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End the server as Ctrl-C would, after ``seconds`` everything that is left of it; return when all are gone.

        Ctrl-C meanwhile ends the patience with the server, not the cleaning up. Shared memory of a server that did not
        end by itself is removed here; what one leaves that did, ``leftovers`` tells.
        """
        if self._process is None:
            return
        self.note_shared_memory()
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.send_signal(signal.SIGINT)
                self._process.wait(seconds)
        by_itself = self._process.poll() is not None
        with _without_interrupts():
            for send in (psutil.Process.terminate, psutil.Process.kill):
                left = self.family()
                for process in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        send(process)
                psutil.wait_procs(left, timeout=5)
            self._process.wait(5)
            if not by_itself:
                for path in self._shared_memory:
                    Path(path).unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """What a stopped server left on the machine: processes, shared memory, a port that still listens."""
        found = [f"process {p.pid} {' '.join(p.cmdline())[:80]}" for p in self.family()]
        found += [f"shared memory {path}" for path in sorted(self._shared_memory) if os.path.exists(path)]
        with self.reach(), socket.socket() as probe:
            if probe.connect_ex((self.address, self.port)) == 0:
                found.append(f"port {self.port} still listens")
        return found

    def log_tail(self, lines: int = 40) -> str:
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return f"--- last lines of {self.log} ---\n" + "\n".join(text)

    def _new_lines(self) -> Iterator[str | None]:
        """Lines of the log as they come; None when there is none for now."""
        with self.log.open(errors="replace") as log:
            while True:
                line = log.readline()
                yield line.rstrip() if line.endswith("\n") else None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _shared_memory_of(process: psutil.Process) -> set[str]:
    """The shared memory that a process has mapped and that has a name."""
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")}


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C does nothing inside; only a main thread can say so, and only it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
