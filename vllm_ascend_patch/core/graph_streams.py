# SPDX-License-Identifier: Apache-2.0
"""How many sizes can be captured into graphs before a device runs out of streams. Pure functions on numbers.

A captured graph keeps a stream of the device for its own work, and one for each communicator whose collectives are in it (an
assumption: the vendor does not say). CANN's documentation of ``aclrtCreateStream`` gives A2 and A3 1984 streams per device;
beyond, a capture ends in error 207008. A graph of a whole step also has one external event, so there are as many as sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEVICE_STREAMS = 1984
"""Streams of an A2 or A3 device (CANN 8.5, ``aclrtCreateStream``)."""

KEPT_FREE = 184
"""Left to everything else in the process and on the device: default streams, communicators, copies. An estimate."""


@dataclass(frozen=True, slots=True)
class GraphKinds:
    """What is captured for a size.

    Attributes:
        pieces: graphs of pieces for each size; 0 without such.
        largest_whole: the largest size whose step is captured whole; 0 if none is.
        communicators: process groups whose collectives are captured.
    """

    pieces: int
    largest_whole: int
    communicators: int

    def streams(self, sizes: Sequence[int]) -> int:
        """Streams that graphs of ``sizes`` take."""
        graphs = self.pieces * len(sizes) + sum(size <= self.largest_whole for size in sizes)
        return graphs * (1 + self.communicators)


def sizes_within(sizes: Sequence[int], kinds: GraphKinds, streams: int = DEVICE_STREAMS - KEPT_FREE) -> list[int]:
    """As many of ``sizes`` as ``streams`` allow, spread evenly, the smallest and the largest among them; ascending.

    At least the largest, since a deployment's batches go up to it.
    """
    ordered = sorted(sizes)
    for count in range(len(ordered), 1, -1):
        step = (len(ordered) - 1) / (count - 1)
        kept = [ordered[round(index * step)] for index in range(count)]
        if kinds.streams(kept) <= streams:
            return kept
    return ordered[-1:]
