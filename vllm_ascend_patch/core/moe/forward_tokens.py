# SPDX-License-Identifier: Apache-2.0
"""The token counts of one forward, and the step that each kind of MoE layer makes of them. Host side only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_ascend_patch.core import trace

from .selection import MethodSelector
from .step import MoEStep

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ForwardTokens:
    """The token counts of one forward.

    Attributes:
        per_dp_rank: rows that each data-parallel rank runs, padding included.
        active: rows of this rank that belong to requests; they come first.
        captured: whether the MoE layers of this forward run inside a captured graph.
        mask: bool, True for the active rows, in memory that a captured graph reads at every replay; None when eager.
        count: called with the method of each step that is made of these counts; None to count nothing.
    """

    per_dp_rank: tuple[int, ...]
    active: int
    captured: bool
    mask: torch.Tensor | None = None
    count: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    _steps: dict[int, MoEStep] = field(default_factory=dict, repr=False, compare=False)

    def step(self, selector: MethodSelector) -> MoEStep:
        """The step for layers with ``selector``; chosen once per forward, however many layers ask."""
        step = self._steps.get(id(selector))
        if step is None:
            choice = selector.choose(max(self.per_dp_rank), self.captured)
            distributed = selector.facts.ep_size > 1 or selector.facts.dp_size > 1
            mask = self.mask if distributed else None  # rows that stay on their rank need none
            step = MoEStep(self.per_dp_rank, self.active, choice.method, self.captured, mask)
            if self.count is not None:
                self.count(choice.method)
            if trace.enabled():
                trace.instant(
                    "moe",
                    {
                        "method": choice.method,
                        "reason": choice.reason,
                        "max_tokens": max(self.per_dp_rank),
                        "captured": self.captured,
                    },
                )
            self._steps[id(selector)] = step
        return step
