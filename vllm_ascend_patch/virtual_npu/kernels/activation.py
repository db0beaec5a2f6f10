# SPDX-License-Identifier: Apache-2.0
"""``npu_swiglu`` and ``npu_clipped_swiglu``: the gate of an expert MLP. Quantised relatives: quantised_activation.py."""

from __future__ import annotations

import torch

from .limits import poison, require, require_contiguous, require_dim, require_dtype


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


def clipped_swiglu(
    x: torch.Tensor,
    *,
    group_index: torch.Tensor | None = None,
    dim: int = -1,
    alpha: float = 1.702,
    limit: float = 7.0,
    bias: float = 1.0,
    interleaved: bool = True,
) -> torch.Tensor:
    """``a * sigmoid(alpha * a) * (b + bias)`` of the halves along ``dim``, ``a <= limit`` and ``|b| <= limit``; in float32.

    Args:
        x: fp16, bf16 or fp32, contiguous, more than one dimension; size ``2 * n`` along ``dim``.
        group_index: int64 ``[G]`` of counts: rows (all axes before ``dim`` as one) past their sum stay unwritten.
        interleaved: ``a`` and ``b`` are the even and odd elements of ``dim`` and what follows it, seen as one axis; else
            its two halves.
    """
    op = "npu_clipped_swiglu"
    require_dtype(op, "x", x, (torch.float16, torch.bfloat16, torch.float32))
    require_contiguous(op, x=x)
    require(op, x.dim() > 1, "x must have more than 1 dimension", x.dim())
    require(op, -x.dim() <= dim < x.dim(), f"dim must be in [{-x.dim()}, {x.dim()})", dim)
    require(op, x.shape[dim] % 2 == 0, f"size along dim {dim} must be even", x.shape[dim])
    dim %= x.dim()
    shape = [size // 2 if axis == dim else size for axis, size in enumerate(x.shape)]
    rows = torch.Size(x.shape[:dim]).numel()
    flat = x.reshape(rows, torch.Size(x.shape[dim:]).numel())
    written = rows
    if group_index is not None:
        require_dtype(op, "group_index", group_index, (torch.int64,))
        require_dim(op, "group_index", group_index, 1)
        written = int(group_index.sum())
        require(op, 0 <= written <= rows, f"group_index must cover at most the {rows} rows of x", written)
    read = flat[:written].float()
    a, b = (read[:, ::2], read[:, 1::2]) if interleaved else read.chunk(2, dim=1)
    a, b = a.clamp(max=limit), b.clamp(-limit, limit)
    y = poison((rows, flat.shape[1] // 2), x.dtype)
    y[:written] = (a * torch.sigmoid(alpha * a) * (b + bias)).to(x.dtype)
    return y.reshape(shape)
