# SPDX-License-Identifier: Apache-2.0
"""Symmetric int8 quantisation of rows, shared by every kernel that ends in it. No operator lives here."""

from __future__ import annotations

import torch

INT8_MAX = 127.0
UNWRITTEN = -128.0  # what a NaN becomes: the value that marks unwritten int8


def quantise_rows(x: torch.Tensor, smooth: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """``scale = rowmax(|x * smooth|) / 127`` and ``y = round(x * smooth / scale)``, over the last dimension.

    Args:
        x: ``[..., H]``, any float; computed in float32.
        smooth: broadcastable to x.

    Returns:
        int8 ``[..., H]`` and the float32 scales ``[...]`` to multiply with when dequantising. A row of zeros has
        scale 0.
    """
    smoothed = x.float() if smooth is None else x.float() * smooth.float()
    scale = smoothed.abs().amax(dim=-1) / INT8_MAX
    divisor = scale.masked_fill(scale == 0, 1.0).unsqueeze(-1)
    y = (smoothed / divisor).round_().clamp_(-INT8_MAX, INT8_MAX).nan_to_num_(nan=UNWRITTEN)
    return y.to(torch.int8), scale


def group_of_rows(ends: torch.Tensor, rows: int) -> torch.Tensor:
    """The group of every row below ``ends[-1]``, from prefix sums; int64 ``[min(ends[-1], rows)]``."""
    covered = min(int(ends[-1]), rows) if ends.numel() else 0
    return torch.searchsorted(ends.long(), torch.arange(covered), right=True)
