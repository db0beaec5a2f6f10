# SPDX-License-Identifier: Apache-2.0
"""The mask of real tokens that captured graphs read: one piece of device memory, written before every replay."""

from __future__ import annotations

import torch


class ActiveMask:
    """bool ``[rows]`` on ``device``: True in the first ``active`` rows, which come before all others.

    A graph keeps the address, not the values, so the memory is made once and never replaced.
    """

    def __init__(self, rows: int, device: torch.device | str) -> None:
        self._positions = torch.arange(rows, dtype=torch.int32, device=device)
        self._mask = torch.zeros(rows, dtype=torch.bool, device=device)
        self._active = 0

    def set(self, active: int) -> None:
        """Mark the first ``active`` rows. One operator on the current stream, none when nothing changed."""
        if active != self._active:
            torch.lt(self._positions, active, out=self._mask)
            self._active = active

    def first(self, rows: int) -> torch.Tensor:
        """The mask of ``rows`` rows, a view."""
        return self._mask[:rows]
