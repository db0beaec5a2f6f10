# SPDX-License-Identifier: Apache-2.0
"""Moving rows between the processes of an expert-parallel group, and noticing when they disagree.

Every dispatch and combine starts with a header that each rank sends to all: a rank that is missing, refuses its own
arguments, calls something else or disagrees about a size is named in the error on every rank. Nothing waits for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from .limits import require

DEFAULT_TIMEOUT = 300.0  # seconds; HCCL_EXEC_TIMEOUT overrides it, as it does on the device
_TAG = 7431


class Communicator(Protocol):
    """An HCCL communicator as the kernels see it: its place and a process group for CPU tensors."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def process_group(self) -> dist.ProcessGroup: ...


def connect(name: str) -> Communicator:
    """The communicator with this ``get_hccl_comm_name``."""
    from .. import hccl

    return hccl.communicator(name)


def timeout() -> timedelta:
    """How long one rank waits for another."""
    return timedelta(seconds=float(os.environ.get("HCCL_EXEC_TIMEOUT", DEFAULT_TIMEOUT)))


@dataclass(frozen=True)
class Agreement:
    """What the headers of all ranks said: field -> one value per rank. Microseconds waited for each."""

    values: Mapping[str, list[int]]
    waited: list[int]


def _fingerprint(text: str) -> int:
    """A number that differs between texts; enough to notice another operator, group or algorithm."""
    return int.from_bytes(text.encode()[-7:].rjust(7, b"\0"), "big") ^ (len(text) << 56)


def exchange_headers(
    op: str, communicator: Communicator, fields: Mapping[str, int], refusal: Exception | None
) -> Agreement:
    """Send this rank's fields to everyone and return everyone's. Raises on every rank if one refuses or is missing.

    Args:
        fields: the same names on every rank that makes the same call.
        refusal: why this rank refuses its own arguments, if it does; raised after the others were told.
    """
    names = list(fields)
    mine = torch.tensor([_fingerprint(op), int(refusal is not None), *fields.values()], dtype=torch.int64)
    rank, size, group = communicator.rank, communicator.size, communicator.process_group
    padded = torch.full((32,), -1, dtype=torch.int64)
    padded[: len(mine)] = mine
    sends = [group.send([padded], peer, _TAG) for peer in range(size) if peer != rank]
    headers, waited = [], []
    started = time.monotonic()
    for peer in range(size):
        received = padded
        if peer != rank:
            received = torch.empty_like(padded)
            try:
                group.recv([received], peer, _TAG).wait(timeout())
            except RuntimeError as error:
                raise RuntimeError(
                    f"{op}: rank {peer} of {size} did not make this call within {timeout().total_seconds():.0f} s, "
                    f"rank {rank} waited for it: {error}"
                ) from error
        headers.append(received[: len(mine)].tolist())
        waited.append(int((time.monotonic() - started) * 1e6) if peer != rank else 0)
    for send in sends:
        send.wait(timeout())
    if refusal is not None:
        raise refusal
    for peer, header in enumerate(headers):
        require(
            op, header[0] == int(mine[0]), f"rank {peer} must make the same call as rank {rank}", "another operator"
        )
        require(op, header[1] == 0, f"rank {peer} must accept its arguments", "an error there")
    return Agreement({name: [header[2 + i] for header in headers] for i, name in enumerate(names)}, waited)


def require_equal(op: str, agreement: Agreement, names: Sequence[str]) -> None:
    """These fields must be equal on all ranks."""
    for name in names:
        values = agreement.values[name]
        require(op, len(set(values)) == 1, f"{name} must be equal on all ranks", f"{values} by rank")


def _all_to_all(
    op: str,
    communicator: Communicator,
    incoming: torch.Tensor,
    outgoing: torch.Tensor,
    splits: tuple[list[int], list[int]] = ([], []),
) -> None:
    try:
        communicator.process_group.alltoall_base(incoming, outgoing, *splits).wait(timeout())
    except RuntimeError as error:
        raise RuntimeError(f"{op}: rank {communicator.rank} lost a rank while rows were moving: {error}") from error


def exchange_counts(op: str, communicator: Communicator, counts: torch.Tensor) -> torch.Tensor:
    """int64 ``[EP, L]``: row r goes to rank r; returns what each rank sent here, ``[EP, L]``."""
    received = torch.empty_like(counts)
    _all_to_all(op, communicator, received, counts.contiguous())
    return received


def exchange_rows(
    op: str, communicator: Communicator, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int]
) -> torch.Tensor:
    """Rows of any dtype: the first ``sent[0]`` to rank 0 and so on; returns ``received[r]`` rows of each rank r."""
    width = rows.shape[1] * rows.element_size()
    outgoing = rows.contiguous().view(torch.uint8).reshape(-1)
    incoming = torch.empty(sum(received) * width, dtype=torch.uint8)
    splits = ([count * width for count in received], [count * width for count in sent])
    _all_to_all(op, communicator, incoming, outgoing, splits)
    return incoming.view(rows.dtype).view(-1, rows.shape[1])
