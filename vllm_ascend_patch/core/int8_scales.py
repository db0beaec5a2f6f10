# SPDX-License-Identifier: Apache-2.0
"""The two encodings of the scale of an int8 product: a float32, or an int64 with the float32's bits in its lower half.

Torch only. Which operator wants which is its caller's business.
"""

from __future__ import annotations

import torch


def as_bits(scale: torch.Tensor) -> torch.Tensor:
    """A floating scale as int64 bits of its float32."""
    return scale.float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def of_bits(bits: torch.Tensor) -> torch.Tensor:
    """The float32 of int64 bits; what ``npu_trans_quant_param`` sets in the upper half is left out."""
    low = bits & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32).view(torch.float32)
