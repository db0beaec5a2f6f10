# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one machine: network namespaces joined by a veth pair, each with its own name, boot id, ``/etc/hosts`` and
``/dev/shm``.

A host lives as long as its keeper, a process that waits for the end of its standard input: it goes with the process that
made it, however that one ends. What runs on hosts does not belong here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .environment import ROOT

_TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")
_INTERFACE = "eth0"
_CLONE_NEWNET = 0x40000000  # linux/sched.h

_SET_UP = """
set -e
mount -t tmpfs shm /dev/shm
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/$2.boot_id" /proc/sys/kernel/random/boot_id
hostname "$2"
ip link set lo up
echo ready
exec cat
"""


@dataclass(frozen=True)
class Host:
    """One of the two hosts.

    Attributes:
        name: its host name. address: its IPv4 address, that of its cable's end.
        keeper: keeps its namespaces; never runs anything else.
    """

    name: str
    address: str
    keeper: subprocess.Popen[str]

    def command(self, command: Sequence[str]) -> list[str]:
        """``command`` as it runs on this host, at the repository's root; the same process, hence signals and exit codes."""
        there = ["nsenter", f"--target={self.keeper.pid}", "--net", "--uts", "--mount", "--"]
        return [*there, "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT), *command]

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread has this host's network meanwhile."""
        with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as before:
            with open(f"/proc/{self.keeper.pid}/ns/net") as here:
                _enter_network(here.fileno())
            try:
                yield
            finally:
                _enter_network(before.fileno())

    def pull_cable(self) -> None:
        """Nothing reaches the other host any more, and nothing says so to open connections."""
        _run(*self.command(["ip", "link", "set", _INTERFACE, "down"]))

    def send(self, number: signal.Signals) -> None:
        """A signal to every process of this host: SIGKILL ends the host, SIGSTOP and SIGCONT pause it."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self) -> list[int]:
        network = os.readlink(f"/proc/{self.keeper.pid}/ns/net")
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/net") == network:
                    found.append(int(entry))
        return [pid for pid in found if pid != self.keeper.pid]


def why_not() -> str:
    """Why this process cannot make hosts; empty if it can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(missing)} here, which make hosts out of namespaces"
    done = subprocess.run(
        [
            "unshare",
            "--net",
            "--uts",
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs shm /dev/shm && ip link add name eth0 type veth",
        ],
        capture_output=True,
        text=True,
    )
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else ""


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them. Whatever runs on them is killed at the end.

    Args:
        folder: takes the files that they see as their own.
    """
    places = {"npu-host-0": "10.77.0.1", "npu-host-1": "10.77.0.2"}
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {name}\n" for name, a in places.items()))
    for number, name in enumerate(places):
        (folder / f"{name}.boot_id").write_text(f"00000000-0000-4000-8000-{number:012d}\n")
    hosts: list[Host] = []
    try:
        for name, address in places.items():
            hosts.append(Host(name, address, _keeper(folder, name)))
        first, second = hosts
        peer = ["peer", "name", _INTERFACE, "netns", str(second.keeper.pid)]
        _run(*first.command(["ip", "link", "add", _INTERFACE, "type", "veth", *peer]))
        for host in hosts:
            _run(*host.command(["ip", "address", "add", f"{host.address}/24", "dev", _INTERFACE]))
            _run(*host.command(["ip", "link", "set", _INTERFACE, "up"]))
            # vLLM asks which of its addresses leads to the world.
            _run(*host.command(["ip", "route", "add", "default", "dev", _INTERFACE]))
        yield first, second
    finally:
        for host in hosts:
            _end(host)


def _keeper(folder: Path, name: str) -> subprocess.Popen[str]:
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", _SET_UP, "sh", str(folder), name]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert keeper.stdout is not None
    if keeper.stdout.readline() != "ready\n":
        raise RuntimeError(f"host {name} could not be made, exit code {keeper.wait()}")
    return keeper


def _end(host: Host) -> None:
    deadline = time.monotonic() + 10
    while host._processes() and time.monotonic() < deadline:
        host.send(signal.SIGKILL)
        time.sleep(0.05)
    host.keeper.kill()
    host.keeper.communicate()


def _enter_network(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
