# SPDX-License-Identifier: Apache-2.0
"""Who the processes of a group are: written into its store when the group is made, read when an exchange of it broke.

For groups that nobody watches: no heartbeat, no thread, nothing that is kept. Groups with a watchdog have a board
(``board.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import struct
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

import torch.distributed as dist

from .board import base_store, private_store, process_runs
from .errors import RankMissingError

_STORE_TIMEOUT = timedelta(seconds=3)

_PATIENCE_SECONDS = 3.0
"""A process may live a little longer than its connections."""

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a group.

    Attributes:
        space: its process id space; two processes of one host and space know each other's ids.
        addresses: of its host.
        broke: it has met the broken exchange itself; that it ends is not the cause.
    """

    rank: int
    host: str
    pid: int
    space: str
    addresses: tuple[str, ...]
    broke: bool = False

    @classmethod
    def this_process(cls, rank: int) -> Member:
        return cls(rank, socket.gethostname(), os.getpid(), _process_space(), _addresses())

    @property
    def here(self) -> bool:
        """Whether this process can see that one."""
        return (self.host, self.space) == (socket.gethostname(), _process_space())

    def describe(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"


def enrol(store: dist.Store, member: Member) -> None:
    """Write a member of the group that ``store`` belongs to."""
    base_store(store).set(_key(member.rank), json.dumps(asdict(member)))


def explain(error: Exception, store: dist.Store | None, rank: int, size: int) -> RankMissingError:
    """Turn a broken exchange of a group into an error that names the rank behind it.

    Args:
        error: what the collective raised; gloo's text ends with the address of the peer that it lost.
        store: of the group; None if there is no way to it.
        rank: this rank.
        size: ranks in the group.
    """
    members, store_answers = _read(store, rank, size)
    others = [members[other] for other in range(size) if other != rank and other in members]
    if ended := _ended(others):
        named = " and ".join(ended)
    elif there := _at(str(error), others):
        named = " or ".join(there)
    elif not store_answers and rank != 0:
        named = f"rank 0, whose process holds the group's store{_place(store)}, which does not answer"
    else:
        unknown = [f"rank {other}" for other in range(size) if other != rank and other not in members]
        named = " or ".join([*(member.describe() for member in others), *unknown])
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RankMissingError(
        f"data-parallel rank {rank}: the engines' exchange of who has work broke ({cause}). Behind it: {named}. Look at "
        "that rank's log, and start the whole deployment again"
    )


def _ended(members: list[Member]) -> list[str]:
    """Those whose processes are seen to be gone; one that is about to end is waited for."""
    seen = [member for member in members if member.here]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while seen:
        gone = [member for member in seen if not process_runs(member.pid)]
        if gone or time.monotonic() > deadline:
            first = [member for member in gone if not member.broke] or gone
            return [f"{member.describe()}, its process is gone" for member in first]
        time.sleep(0.05)
    return []


def _at(text: str, members: list[Member]) -> list[str]:
    """Those on the host whose address stands in gloo's text."""
    addresses = re.findall(r"\[([0-9A-Fa-f.:%\w]+)\]:\d+", text)
    return [member.describe() for member in members if set(addresses) & set(member.addresses)]


def _read(store: dist.Store | None, rank: int, size: int) -> tuple[dict[int, Member], bool]:
    """The members that have enrolled, and whether the store could be asked. Tells the others that this rank did."""
    members: dict[int, Member] = {}
    if store is None:
        return members, True
    try:  # a new connection: it gives up in time when the store's machine is gone
        roster = base_store(private_store(store, "", _STORE_TIMEOUT))
        for other in range(size):
            if roster.check([_key(other)]):
                record = json.loads(roster.get(_key(other)))
                members[other] = Member(**{**record, "addresses": tuple(record["addresses"])})
        if rank in members:
            enrol(roster, replace(members[rank], broke=True))
    except RuntimeError:
        return members, False
    return members, True


def _key(rank: int) -> str:
    return f"vllm_ascend_patch/roster/{rank}"


def _place(store: dist.Store | None) -> str:
    base = base_store(store) if store is not None else None
    return f" at {base.host}:{base.port}" if isinstance(base, dist.TCPStore) else ""


def _process_space() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _addresses() -> tuple[str, ...]:
    """IPv4 addresses of this host's interfaces, and what its name resolves to."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode()[:15])
                found.add(socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]))
    with contextlib.suppress(OSError):
        found |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return tuple(sorted(found))
