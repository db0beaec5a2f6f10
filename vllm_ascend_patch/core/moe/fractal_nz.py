# SPDX-License-Identifier: Apache-2.0
"""The storage format FRACTAL_NZ, in tiles of 16 x 32 int8 elements: there, back, and whether a device has it.

A tensor in it is read by operators that take the format, and written as a whole: a part of it is no piece of its memory.
"""

from __future__ import annotations

import torch

ND, FRACTAL_NZ = 2, 29  # torch_npu.Format


def to_nz(plain: torch.Tensor) -> torch.Tensor:
    """A copy of ``plain``, of any strides, in FRACTAL_NZ; in ND on a device that has no other format."""
    import torch_npu

    # Without it torch_npu gives ND for whatever is asked, in silence.
    torch_npu.npu.config.allow_internal_format = True
    return torch_npu.npu_format_cast(plain.contiguous(), FRACTAL_NZ)


def to_nd(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` in ND."""
    import torch_npu

    return torch_npu.npu_format_cast(tensor, ND)


def gives_nz(device: torch.device) -> bool:
    """Whether int8 tensors of the device can be in FRACTAL_NZ."""
    import torch_npu

    tried = to_nz(torch.zeros(1, 32, 32, dtype=torch.int8, device=device))
    return int(torch_npu.get_npu_format(tried)) == FRACTAL_NZ
