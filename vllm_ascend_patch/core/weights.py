# SPDX-License-Identifier: Apache-2.0
"""Tells which tensors of a checkpoint never arrived: parameters are marked when they are made, and looked at after loading.

A mark costs one row per tensor and asks nothing of whoever loads. Torch only; which row belongs to which tensor is the
caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# int8: no symmetric quantisation makes a whole row of it. The others: no bias, offset or bits of a positive scale.
_INTEGER_MARKS = {torch.int8: -128, torch.int32: -(2**31), torch.int64: -(2**63)}


def mark(weight: torch.Tensor, rows: Sequence[int]) -> None:
    """Write what no checkpoint holds into the ``rows`` of ``weight``, ``[E, R, C]``: NaN, or an integer type's smallest."""
    for row in rows:
        weight[:, row].fill_(_INTEGER_MARKS.get(weight.dtype, float("nan")))


def unwritten(weight: torch.Tensor, rows: Sequence[int]) -> list[tuple[int, int]]:
    """The marks of ``mark`` that are still there.

    Args:
        weight: ``[E, R, C]``.
        rows: as given to ``mark``.

    Returns:
        (expert, index into ``rows``) of each row that holds nothing but marks, in ascending order.
    """
    chosen = torch.stack([weight[:, row] for row in rows], dim=1)
    marks = chosen == _INTEGER_MARKS[weight.dtype] if weight.dtype in _INTEGER_MARKS else chosen.isnan()
    return [(int(expert), int(index)) for expert, index in marks.all(dim=2).nonzero().tolist()]
