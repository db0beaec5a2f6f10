# SPDX-License-Identifier: Apache-2.0
"""How many ranks serve a family, and what each does. Each rank is a process with an engine of its own; all do the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Tensor- and data-parallel ranks; with more than one, whole experts are spread over them."""

    tp_size: int = 1
    dp_size: int = 1

    @property
    def ranks(self) -> int:
        return self.tp_size * self.dp_size


LAYOUTS: dict[str, Layout] = {
    "1 NPU": Layout(),
    "TP 2 + EP": Layout(tp_size=2),
    "DP 2 + EP": Layout(dp_size=2),
}
