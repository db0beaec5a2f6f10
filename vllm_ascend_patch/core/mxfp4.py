# SPDX-License-Identifier: Apache-2.0
"""Weights in mxfp4 (OCP Microscaling, four bits), as gpt-oss is published, turned into what the operators take. Torch only.

A number is a sign, two bits of exponent and one of mantissa (E2M1); 32 of a row share a scale, a power of two (E8M0).
"""

from __future__ import annotations

import torch

from .weight_formats import MXFP4_GROUP

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SCALES = (*(2.0 ** (bits - 127) for bits in range(255)), float("nan"))


def dequantised(packed: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of ``packed`` times their scales: exact in bfloat16, whose range is that of the scales.

    Args:
        packed: uint8 ``[E, N, K / 2]``, two numbers each, the first in the lower bits.
        scales: uint8 ``[E, N, K / 32]``.
        dtype: of the result.

    Returns:
        ``[E, N, K]``, made one expert after another, since what lies between takes several times as much memory.
    """
    experts, rows, half = packed.shape
    values = torch.tensor([*_VALUES, *(-value for value in _VALUES)], device=packed.device)
    powers = torch.tensor(_SCALES, device=packed.device)
    found = torch.empty(experts, rows, 2 * half, dtype=dtype, device=packed.device)
    for expert in range(experts):
        bits = torch.stack([packed[expert] & 15, packed[expert] >> 4], dim=-1).flatten(-2)
        numbers = values[bits.long()].unflatten(-1, (-1, MXFP4_GROUP))
        found[expert] = (numbers * powers[scales[expert].long()].unsqueeze(-1)).flatten(-2)
    return found
