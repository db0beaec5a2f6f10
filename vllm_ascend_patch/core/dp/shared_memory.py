# SPDX-License-Identifier: Apache-2.0
"""The step matrix in memory that all ranks of one host have mapped: a step makes no call into any collective library.

Only the words in that memory and the protocol of reading and writing them live here. Who creates the memory, and whether
all ranks really see the same, is ``shared_mapping.py``'s.

Layout: two slots, in each a row per rank, in each row a word per field; rows are padded to cache lines, because two ranks
that write into one line slow each other down. A rank writes its own rows only.

Words validate themselves. Each is 64 bits: the sequence number of the exchange in the upper half, the field's value in the
lower one. A slot is complete when every word of every rank carries the expected number. What a reader relies on is that an
aligned 8-byte load or store is not torn, which holds on x86-64 and aarch64, and not on any order among words: aarch64 may
make them visible in any order, and no fence can be asked for from Python. The copy that was checked is also the copy that
is used. Words that nobody wrote yet are zero, a number that no exchange has.

Two slots used in turn suffice. A rank writes exchange n + 2 over n only when it has seen n + 1 of every rank, and each rank
writes n + 1 only after it has accepted its copy of n. (The hardware keeps to that as well: it makes no store visible before
the loads that the decision to store depends on.) Hence whoever posts waits for that exchange before the next ``post``.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np

from .transport import Check, Transport, wait_until

_WORD = 8
_CACHE_LINE = 64
_LAST_SEQUENCE = (1 << 32) - 1
"""The number after this one is 1: 0 is what memory holds that nobody wrote."""

# Places of the halves of a word among 32-bit numbers.
_VALUE, _SEQUENCE = (0, 1) if sys.byteorder == "little" else (1, 0)


def _row_words(fields: int) -> int:
    per_line = _CACHE_LINE // _WORD
    return -(-fields // per_line) * per_line


class SharedMemoryTransport(Transport):
    """Exchanges the matrix through one mapping.

    Args:
        memory: at least ``bytes_needed``, zeros at first, shared with all ranks; kept alive by this object.
        rank: this rank.
        size: ranks.
        fields: rows of the matrix.
    """

    name = "shared"

    def __init__(self, memory: mmap.mmap, rank: int, size: int, fields: int) -> None:
        super().__init__(rank, size, fields)
        row_words = _row_words(fields)
        slots = np.frombuffer(memory, np.uint64, 2 * size * row_words).reshape(2, size, row_words)
        self._slots = [slots[0], slots[1]]
        self._own_rows = [slot[rank] for slot in self._slots]
        self._turn = 0
        self._sequence = 1
        self._row, self._row_values, self._row_sequences = _words(row_words)
        copy, values, sequences = _words(size, row_words)
        self._copy = copy
        self._values, self._sequences = values[:, :fields].T, sequences[:, :fields]
        self._expected = np.zeros(1, np.uint32)
        self._equal = np.zeros((size, fields), np.bool_)
        self._awaited = self._slots[0]

    @staticmethod
    def bytes_needed(size: int, fields: int) -> int:
        return 2 * size * _row_words(fields) * _WORD

    @property
    def payload_bytes(self) -> int:
        return _WORD * self.fields * self.size

    def describe(self) -> str:
        return f"{self.payload_bytes} bytes through shared memory and no collective"

    def column(self) -> np.ndarray:
        return self._row_values[: self.fields]

    def post(self) -> Any:
        slot, sequence = self._turn, self._sequence
        self._turn ^= 1
        self._sequence = 1 if sequence == _LAST_SEQUENCE else sequence + 1
        self._row_sequences.fill(sequence)
        np.copyto(self._own_rows[slot], self._row)
        return slot, sequence

    def wait(self, handle: Any, check: Check) -> list[list[int]]:
        slot, sequence = handle
        self._awaited, self._expected[0] = self._slots[slot], sequence
        wait_until(self._complete, check)
        return self._values.tolist()

    def _complete(self) -> bool:
        np.copyto(self._copy, self._awaited)
        np.equal(self._sequences, self._expected, out=self._equal)
        return bool(self._equal.all())


def _words(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Private words, and views of the values and of the sequence numbers in them."""
    words = np.zeros(shape, np.uint64)
    return words, words.view(np.int32)[..., _VALUE::2], words.view(np.uint32)[..., _SEQUENCE::2]
