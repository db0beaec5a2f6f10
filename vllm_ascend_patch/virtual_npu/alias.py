# SPDX-License-Identifier: Apache-2.0
"""The bridge between a virtual NPU's tensors and the CPU kernels that compute on them.

Device memory is host memory, so both directions are free of copies. Used by the reference kernels and by the
collectives; nothing here knows any operator.
"""

from typing import TYPE_CHECKING

from .extension import load

if TYPE_CHECKING:
    import torch


def alias_cpu(tensor: "torch.Tensor") -> "torch.Tensor":
    """A CPU tensor over the memory of ``tensor``: same sizes, strides, storage offset and dtype.

    Writing to either is seen by the other, and the memory lives as long as one of them does. A CPU tensor is
    returned as it is.
    """
    return load().alias_cpu(tensor)


def borrow_cpu(tensor: "torch.Tensor") -> "torch.Tensor":
    """Like ``alias_cpu``, but the memory is not kept alive: for what a graph replays on memory of its pool."""
    return load().borrow_cpu(tensor)


def to_device(tensor: "torch.Tensor", device: "torch.device | str | int") -> "torch.Tensor":
    """A new tensor on the NPU ``device`` with the values of the CPU tensor ``tensor`` (one copy, counted as device memory).

    The copy is made here and not put on a stream, so that a graph does not record it.
    """
    import torch

    target = torch.device("npu", device) if isinstance(device, int) else torch.device(device)
    copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=target)
    alias_cpu(copied).copy_(tensor)
    return copied
