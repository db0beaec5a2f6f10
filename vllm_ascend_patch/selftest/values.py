# SPDX-License-Identifier: Apache-2.0
"""How far a tensor is from what it should be, for the self-test. What is allowed stands in ``result.py``."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .result import TOLERANCE, require

#: int8 rows are rounded from floats that differ in their last bit.
STEPS_OF_INT8 = 1


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` and the like."""
    return str(dtype).removeprefix("torch.")


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error where ``expected`` is defined (a reference kernel leaves NaN where a device leaves old memory), as
    a multiple of what is allowed: at most 1 is right, infinity if something is not finite.

    Raises AssertionError when shape or dtype differ.
    """
    require(
        (found.shape, found.dtype) == (expected.shape, expected.dtype),
        f"{tuple(found.shape)} {found.dtype} instead of {tuple(expected.shape)} {expected.dtype}",
    )
    found, dtype = found.cpu(), expected.dtype
    if expected.numel() == 0:
        return 0.0
    if not dtype.is_floating_point:
        off = int((found.long() - expected.long()).abs().max())
        return off / STEPS_OF_INT8 if dtype == torch.int8 else (0.0 if off == 0 else float("inf"))
    defined = ~expected.isnan()
    if not bool(defined.any()):
        return 0.0
    wanted = expected[defined].double()
    off_by = (found[defined].double() - wanted).abs()
    off_by[found[defined].double() == wanted] = 0.0  # two infinities
    if not bool(off_by.isfinite().all()):
        return float("inf")
    largest = wanted[wanted.isfinite()].abs().max().item() if bool(wanted.isfinite().any()) else 1.0
    return float(off_by.max()) / (TOLERANCE[name_of(dtype)] * max(largest, 1e-6))


def worst_of(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest of ``error_of`` over pairs of found and expected."""
    return max((error_of(found, expected) for found, expected in pairs), default=0.0)
