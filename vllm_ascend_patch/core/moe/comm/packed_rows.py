# SPDX-License-Identifier: Apache-2.0
"""A token and its routing in one row, so that both travel in one exchange. Layout only: no communication, no routing.

A row of float tokens, in elements of their dtype, and of int8 tokens, in bytes:
    | ids: K int32 | scale: fp32, int8 tokens only | weights: K | padding | hidden: H |
Weights have the dtype in which the operator that applies them takes them. The padding makes rows a multiple of four bytes,
so that the ids of a received row can be read where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_ascend_patch.core.moe.constants import zero_rows


@dataclass(frozen=True)
class RowLayout:
    """Widths of the parts of a row.

    Attributes:
        hidden_size: H.
        top_k: K.
        output_dtype: dtype of the results, and of the tokens unless they are quantised.
        quantized: int8 tokens with a scale each.
        weights_dtype: float32, or the output dtype.
    """

    hidden_size: int
    top_k: int
    output_dtype: torch.dtype
    quantized: bool
    weights_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """dtype of a packed row."""
        return torch.int8 if self.quantized else self.output_dtype

    @property
    def _widths(self) -> tuple[int, int, int, int]:
        """Elements of ids, scale, weights and padding."""
        size = self.dtype.itemsize
        ids, scale = 4 * self.top_k // size, 4 // size if self.quantized else 0
        weights = self.top_k * self.weights_dtype.itemsize // size
        return ids, scale, weights, -(ids + scale + weights + self.hidden_size) % (4 // size)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return sum(self._widths) + self.hidden_size

    def pack(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor | None
    ) -> torch.Tensor:
        """``[N, H]``, int32 ``[N, K]``, fp32 ``[N, K]`` and, for int8 tokens, fp32 ``[N]`` -> ``[N, width]``.

        Weights are rounded, if at all, before the parts are joined: of one dtype, they are moved as they are; a conversion
        on the way might not keep the bits of ids.
        """
        padding = self._widths[3]
        parts = [ids.view(self.dtype)]
        if scales is not None:
            parts.append(scales.unsqueeze(1).view(self.dtype))
        parts.append(weights.to(self.weights_dtype).view(self.dtype))
        if padding:
            parts.append(zero_rows(hidden.shape[0], hidden[:, :padding]))
        return torch.cat([*parts, hidden], dim=1)

    def hidden(self, rows: torch.Tensor) -> torch.Tensor:
        """``[N, H]``, a view."""
        return rows[:, self.width - self.hidden_size :]

    def ids(self, rows: torch.Tensor) -> torch.Tensor:
        """int32 ``[N, K]``, a view."""
        return rows[:, : self._widths[0]].view(torch.int32)

    def weights(self, rows: torch.Tensor) -> torch.Tensor:
        """``[N, K]``, a view."""
        ids, scale, weights, _ = self._widths
        return rows[:, ids + scale : ids + scale + weights].view(self.weights_dtype)

    def scales(self, rows: torch.Tensor) -> torch.Tensor | None:
        """fp32 ``[N]``, a view, for int8 tokens."""
        ids, scale, _, _ = self._widths
        return rows[:, ids : ids + scale].view(torch.float32).squeeze(1) if self.quantized else None
