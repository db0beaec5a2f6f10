# SPDX-License-Identifier: Apache-2.0
"""``npu_format_cast``: the storage formats ND and FRACTAL_NZ. The one kernel here that works on NPU tensors themselves.

A FRACTAL_NZ tensor of the virtual NPU carries the format in its descriptor (``get_npu_format`` says 29, its storage has the
padded size), while its elements stay in ND order: no operator here reads tiles, and every aten operator stays right.
"""

from __future__ import annotations

import torch

from .limits import require, unsupported

#: torch_npu.Format: undefined, NCHW and ND are one plain layout; 29 is FRACTAL_NZ.
BASE_FORMATS = (-1, 0, 2)
FRACTAL_NZ = 29


def is_nz(tensor: torch.Tensor) -> bool:
    """True for an NPU tensor in FRACTAL_NZ."""
    return int(torch.ops.npu.get_npu_format(tensor)) == FRACTAL_NZ


def is_base(tensor: torch.Tensor) -> bool:
    """True for an NPU tensor in a plain layout."""
    return int(torch.ops.npu.get_npu_format(tensor)) in BASE_FORMATS


def format_cast(
    self: torch.Tensor, acl_format: int, customize_dtype: int | None = None, input_dtype: int | None = None
) -> torch.Tensor:
    """A tensor with the same elements in storage format ``acl_format``: 2 (ND, also 0 and -1) or 29 (FRACTAL_NZ)."""
    op = "npu_format_cast"
    if customize_dtype is not None or input_dtype is not None:
        raise unsupported(op, "arguments customize_dtype and input_dtype")
    if acl_format not in (*BASE_FORMATS, FRACTAL_NZ):
        raise unsupported(op, f"storage format {acl_format}")
    require(op, acl_format != FRACTAL_NZ or self.dim() >= 2, "FRACTAL_NZ needs 2 dimensions", list(self.shape))
    wanted_nz = acl_format == FRACTAL_NZ
    if is_nz(self) == wanted_nz:
        return self
    out = torch.ops.npu.empty_with_format(
        list(self.shape), dtype=self.dtype, device=self.device, acl_format=FRACTAL_NZ if wanted_nz else 2
    )
    return out.copy_(self)


def format_cast_like(
    self: torch.Tensor, dst: torch.Tensor, customize_dtype: int | None = None, input_dtype: int | None = None
) -> torch.Tensor:
    """``npu_format_cast`` to the format of another tensor."""
    return format_cast(self, FRACTAL_NZ if is_nz(dst) else 2, customize_dtype, input_dtype)
