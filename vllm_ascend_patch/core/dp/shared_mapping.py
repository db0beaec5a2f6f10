# SPDX-License-Identifier: Apache-2.0
"""Gives the ranks of one host memory in common, or finds out why they cannot have it. How the memory is used is in
``shared_memory.py``.

Collective: all ranks call ``connect`` together and get the same answer, over a transport that already works. Nothing here
raises on one rank while others wait: a rank that fails says so in the next exchange.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from .calibrate import exchange
from .shared_memory import SharedMemoryTransport
from .transport import Check, Transport

DIRECTORY = Path("/dev/shm")

_TOKEN_NUMBERS = 4
_PROOF_SECONDS = 1.0


def connect(carrier: Transport, check: Check) -> tuple[SharedMemoryTransport | None, str]:
    """Map one file on all ranks and prove that it is the same memory.

    Rank 0 creates the file under a random name. Ranks may run in containers with separate directories, or on several
    hosts, and then do not find it. The name goes as soon as all have mapped the file: the memory then lives as long as a
    process has it mapped, and nothing is left behind however the processes end.

    Args:
        carrier: a working transport among the same ranks, for the same number of fields.
        check: see ``Transport.wait``.

    Returns:
        The transport and an empty string, or None and the reason, alike on all ranks.
    """
    rank, size, fields = carrier.rank, carrier.size, carrier.fields
    length = SharedMemoryTransport.bytes_needed(size, fields)
    token = [secrets.randbits(31) for _ in range(_TOKEN_NUMBERS)]
    path = _path(token)
    memory, code = _attempt(_create, path, length) if rank == 0 else (None, 0)
    try:
        codes, *tokens = exchange(carrier, [code, *token], check)
        if codes[0]:
            return None, f"rank 0 cannot create a file of {length} bytes in {DIRECTORY}: {os.strerror(codes[0])}"
        token = [row[0] for row in tokens[:_TOKEN_NUMBERS]]
        path = _path(token)
        if rank != 0:
            memory, code = _attempt(_open, path, length)
        transport = handle = None
        if memory is not None:
            transport = SharedMemoryTransport(memory, rank, size, fields)
            column = transport.column()
            column[:_TOKEN_NUMBERS] = token
            handle = transport.post()
        codes = exchange(carrier, [code], check)[0]
    finally:
        with contextlib.suppress(OSError):  # every rank: rank 0 may have died
            path.unlink()
    if any(codes):
        return None, "; ".join(
            f"rank {other} cannot open {path}, which rank 0 created: {os.strerror(c)}"
            for other, c in enumerate(codes)
            if c
        )
    assert transport is not None
    seen = exchange(carrier, [int(_sees_token(transport, handle, token))], check)[0]
    if not all(seen):
        blind = ", ".join(str(other) for other, sees in enumerate(seen) if not sees)
        return None, f"rank(s) {blind} opened {path}, but it is not the memory that the others write to"
    return transport, ""


def _path(token: list[int]) -> Path:
    return DIRECTORY / ("vllm_ascend_patch." + "".join(f"{number:08x}" for number in token))


def _attempt(function: Callable[[Path, int], mmap.mmap], path: Path, length: int) -> tuple[mmap.mmap | None, int]:
    """The mapping and 0, or None and the error number."""
    try:
        return function(path, length), 0
    except OSError as error:
        return None, error.errno or errno.EIO
    except ValueError:  # a file of that name that is too short
        return None, errno.EINVAL


def _create(path: Path, length: int) -> mmap.mmap:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, length)  # a full file system is an error here, not a signal at the first write
        return mmap.mmap(file, length)
    finally:
        os.close(file)


def _open(path: Path, length: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return mmap.mmap(file, length)
    finally:
        os.close(file)


def _sees_token(transport: SharedMemoryTransport, handle: object, token: list[int]) -> bool:
    """Whether every rank's first exchange, the token, has come through the memory. All have written it by now."""

    def give_up(waited: float) -> None:
        if waited > _PROOF_SECONDS:
            raise TimeoutError

    try:
        rows = transport.wait(handle, give_up)
    except TimeoutError:
        return False
    return rows[: len(token)] == [[number] * transport.size for number in token]
