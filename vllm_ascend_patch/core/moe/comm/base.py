# SPDX-License-Identifier: Apache-2.0
"""The strategy that moves tokens to experts and back: ``prepare -> dispatch -> (expert MLP) -> combine -> finalize``.

This file holds the interface only; each method has a file of its own and one entry in ``comm.METHODS``.

Symbols used in the docstrings of all methods:
    T  rows of ``hidden_states`` on this rank         H  hidden size
    K  experts per token (top-k)                      E  experts over all ranks (physical, redundant ones included)
    L  experts on this rank                           A  rows that the expert MLP gets
    TP, DP, EP  sizes of the parallel groups, EP = TP * DP when experts are distributed

Rules that hold for every method:
    * The result is the complete sum over all experts for this rank's T tokens: nothing is left to reduce. The caller's
      reduction state is fixed when the model is traced, so it may not depend on the method.
    * Rows past the active tokens never leave the rank with their content: they travel as zeros with router weight zero
      and valid expert ids, or not at all. What comes back for them is zero.
    * State goes from step to step in frozen objects, never through ``self``: a method object serves all layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch

from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology


@dataclass(frozen=True, eq=False)
class MoEInput:
    """What one layer on one rank starts from.

    Attributes:
        hidden_states: ``[T, H]`` bf16, fp16 or fp32.
        topk_weights: ``[T, K]`` fp32, applied when results are combined.
        topk_ids: ``[T, K]`` int32 physical expert ids, no duplicates within a row.
        quantize: True when the experts want int8 rows with a scale each.
        sums: True when the experts want prefix sums of their rows' counts, from whoever can give them without more work.
    """

    hidden_states: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    quantize: bool = False
    sums: bool = False

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return self.topk_ids.shape[1]


@dataclass(frozen=True, eq=False)
class DispatchedRows:
    """What the expert MLP gets. Methods extend it with what their ``combine`` needs.

    Attributes:
        rows: ``[A, H]`` sorted by local expert; int8 when quantised. Rows past ``counts.sum()`` are undefined.
        counts: int64 ``[L]`` on the device, rows per local expert.
        row_scales: fp32 ``[A]`` for int8 rows, else None.
        sums: whether ``counts`` are prefix sums.
    """

    rows: torch.Tensor
    counts: torch.Tensor
    row_scales: torch.Tensor | None
    sums: bool = field(default=False, kw_only=True)


PreparedT = TypeVar("PreparedT")
DispatchedT = TypeVar("DispatchedT", bound=DispatchedRows)


class MoECommMethod(ABC, Generic[PreparedT, DispatchedT]):
    """One way of bringing tokens to experts and results back.

    Args:
        topology: the parallel layout.
        placement: which rank holds which experts.
    """

    name: ClassVar[str]
    """The key of the method's row in ``comm.METHODS``, which says what else is known of it."""

    def __init__(self, topology: Topology, placement: ExpertPlacement) -> None:
        self.topology = topology
        self.placement = placement

    @abstractmethod
    def prepare(self, inputs: MoEInput, step: MoEStep) -> PreparedT:
        """Bring this rank's tokens into the shape that ``dispatch`` communicates: divide, pad, quantise, gather."""

    @abstractmethod
    def dispatch(self, prepared: PreparedT) -> DispatchedT:
        """Move each token to its experts' ranks; return rows sorted by local expert."""

    @abstractmethod
    def combine(self, dispatched: DispatchedT, expert_output: torch.Tensor) -> torch.Tensor:
        """Weight the experts' results (``[A, H]``) and sum them per token."""

    @abstractmethod
    def finalize(self, prepared: PreparedT, combined: torch.Tensor) -> torch.Tensor:
        """Undo ``prepare``: reduce, gather and cut to ``[T, H]``, the complete sum for this rank's tokens."""
