# SPDX-License-Identifier: Apache-2.0
"""Tells which tensors of a checkpoint never arrived: parameters are marked when they are made, and looked at after loading.

A mark costs one row per tensor and asks nothing of whoever loads. Torch only; which row belongs to which tensor is the
caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# No symmetric quantisation makes a whole row of it.
_INT8_MARK = -128


def mark(weight: torch.Tensor, rows: Sequence[int]) -> None:
    """Write what no checkpoint holds into the ``rows`` of ``weight``, ``[E, R, C]``: NaN, or -128 in int8."""
    for row in rows:
        weight[:, row].fill_(_INT8_MARK if weight.dtype == torch.int8 else float("nan"))


def unwritten(weight: torch.Tensor, rows: Sequence[int]) -> list[tuple[int, int]]:
    """The marks of ``mark`` that are still there.

    Args:
        weight: ``[E, R, C]``.
        rows: as given to ``mark``.

    Returns:
        (expert, index into ``rows``) of each row that holds nothing but marks, in ascending order.
    """
    chosen = torch.stack([weight[:, row] for row in rows], dim=1)
    marks = chosen == _INT8_MARK if weight.dtype == torch.int8 else chosen.isnan()
    return [(int(expert), int(index)) for expert, index in marks.all(dim=2).nonzero().tolist()]
