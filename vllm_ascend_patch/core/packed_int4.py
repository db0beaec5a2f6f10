# SPDX-License-Identifier: Apache-2.0
"""int4 weights as compressed-tensors packs them, and as torch_npu's operators take them beside float rows (A16W4).

Both have eight neighbouring inputs of an output in an int32, the lowest bits first, ``[N, K / 8]``. A checkpoint's four bits
are the value plus 8, the operator's are two's complement: the top bit is the other way round. The operators are given the
transposed view, so nothing is laid out anew. Torch only.
"""

from __future__ import annotations

import torch

PER_WORD = 8
_TOP_BITS = -0x77777778
"""0x88888888 as an int32."""


def to_signed(words: torch.Tensor) -> torch.Tensor:
    """A checkpoint's words, int32, as the operators take them. What it does, it undoes."""
    return words ^ _TOP_BITS


def group_scales(like: torch.Tensor) -> torch.Tensor:
    """Ones of the shape ``[..., N, G]``, dtype and device of ``like``: a view of ``[..., G, N]`` in memory, which is how
    the operators take scales."""
    return torch.ones_like(like.mT, memory_format=torch.contiguous_format).mT
