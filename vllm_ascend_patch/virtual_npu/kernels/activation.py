# SPDX-License-Identifier: Apache-2.0
"""``npu_swiglu``: the gate of an expert MLP. Its quantised relatives live in quantised_activation.py."""

from __future__ import annotations

import torch

from .limits import require, require_dtype


def swiglu(self: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """``silu(first half) * second half`` along ``dim``, computed in float32, in the dtype of the input.

    Args:
        self: fp16, bf16 or fp32, 1 to 8 dimensions; size ``2 * n`` along ``dim``.
    """
    op = "npu_swiglu"
    require_dtype(op, "x", self, (torch.float16, torch.bfloat16, torch.float32))
    require(op, 1 <= self.dim() <= 8, "x must have 1 to 8 dimensions", self.dim())
    require(op, -self.dim() <= dim < self.dim(), f"dim must be in [{-self.dim()}, {self.dim()})", dim)
    require(op, self.shape[dim] % 2 == 0, f"size along dim {dim} must be even", self.shape[dim])
    gate, up = self.float().chunk(2, dim=dim)
    return (torch.nn.functional.silu(gate) * up).to(self.dtype)
