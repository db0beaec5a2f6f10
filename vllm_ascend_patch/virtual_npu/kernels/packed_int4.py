# SPDX-License-Identifier: Apache-2.0
"""int4 weights as the operators take them: eight in an int32, the lowest bits first, along N or, transposed, along K.

Which of the two it is, the strides tell, as they do the host code and the Meta kernels. No product here.
"""

from __future__ import annotations

import torch

from .limits import require, require_dtype

PER_WORD = 8


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """``[..., N]`` int64 in -8 to 7 from int32 ``[..., N / 8]``."""
    nibbles = (words.long().unsqueeze(-1) >> torch.arange(0, 4 * PER_WORD, 4)) & 15
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


def is_transposed(words: torch.Tensor) -> bool:
    """Whether the last but one dimension is the contiguous one, and holds the eight of a word."""
    return words.stride(-2) == 1 and words.stride(-1) == words.shape[-2]


def matrices(op: str, words: torch.Tensor) -> torch.Tensor:
    """int64 ``[..., K, N]`` of a weight ``[..., K, N / 8]``, or ``[..., K / 8, N]`` that is a transposed view."""
    require_dtype(op, "an int4 weight", words, (torch.int32,))
    if is_transposed(words):
        require(op, words.mT.is_contiguous(), "a transposed int4 weight must be whole", list(words.stride()))
        return unpacked(words.mT).mT
    require(op, words.is_contiguous(), "an int4 weight must be contiguous or transposed", list(words.stride()))
    return unpacked(words)
