# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square normalisation: ``npu_rms_norm`` and ``npu_add_rms_norm``. Nothing quantised lives here."""

from __future__ import annotations

import torch

from .limits import require, require_dtype, require_shape

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _check(op: str, x: torch.Tensor, gamma: torch.Tensor) -> None:
    require_dtype(op, "x", x, FLOATS)
    require(op, gamma.dtype == x.dtype, f"gamma must have the dtype of x ({x.dtype})", gamma.dtype)
    require(op, 1 <= x.dim() <= 8, "x must have 1 to 8 dimensions", x.dim())
    require(
        op, 1 <= gamma.dim() <= x.dim(), f"gamma must have 1 to {x.dim()} dimensions (those of x)", list(gamma.shape)
    )
    require_shape(op, "gamma (the trailing dimensions of x)", gamma, x.shape[x.dim() - gamma.dim() :])


def _normalise(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x and gamma in float32; returns y in float32 and 1/rms over the dimensions of gamma, kept as size 1."""
    over = tuple(range(x.dim() - gamma.dim(), x.dim()))
    rstd = torch.rsqrt(x.square().mean(dim=over, keepdim=True) + epsilon)
    return x * rstd * gamma, rstd


def rms_norm(self: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """``x / rms(x) * gamma``.

    Args:
        self: fp16, bf16 or fp32, 1 to 8 dimensions.
        gamma: the trailing dimensions of ``self``, same dtype.

    Returns:
        y like ``self``; rstd, float32, the dimensions of gamma reduced to 1.
    """
    _check("npu_rms_norm", self, gamma)
    y, rstd = _normalise(self.float(), gamma.float(), epsilon)
    return y.to(self.dtype), rstd


def add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RMS norm of ``x1 + x2``; returns y, rstd (float32) and the sum in the dtype of the inputs."""
    op = "npu_add_rms_norm"
    _check(op, x1, gamma)
    require_shape(op, "x2 (the shape of x1)", x2, x1.shape)
    require(op, x2.dtype == x1.dtype, f"x2 must have the dtype of x1 ({x1.dtype})", x2.dtype)
    total = x1.float() + x2.float()
    y, rstd = _normalise(total, gamma.float(), epsilon)
    return y.to(x1.dtype), rstd, total.to(x1.dtype)
