# SPDX-License-Identifier: Apache-2.0
"""What every reference kernel shares: stating a broken limit, and marking what the device leaves unwritten.

No operator lives here. A broken limit is a ``RuntimeError`` that reads ``npu_xxx: <limit>, got <value>``; a feature the
vendor has and these kernels have not is a ``NotImplementedError`` that names the manifest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import torch

from ..profile import current

INT32_MAX: Final = 2**31 - 1

# What an unwritten element holds. Floating types have NaN; integers a value that no kernel here produces.
_POISON: Final[dict[torch.dtype, float | int]] = {
    torch.int8: -128,
    torch.int32: -(2**31),
    torch.int64: -(2**63),
    torch.uint8: 0xAB,
}


class _Absent:
    """Default of an argument that the schema of an older wheel does not have."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


def soc() -> str:
    """The SoC that is being simulated, ``"A2"`` or ``"A3"``."""
    return current().soc


def newer_attention() -> bool:
    """Whether fused attention is that of CANN 9.1, which takes bands, sinks and more head sizes in layout TND."""
    return current().cann != "8.5"


def require(op: str, holds: bool, limit: str, got: object) -> None:
    """Raise ``RuntimeError`` unless the limit holds."""
    if not holds:
        raise RuntimeError(f"{op}: {limit}, got {got}")


def unsupported(op: str, what: str) -> NotImplementedError:
    """The error for a feature of a real operator that its reference kernel does not model."""
    return NotImplementedError(f"{op}: {what} is not modelled by the virtual NPU (see virtual_npu/manifest.py)")


def require_absent(op: str, **arguments: object) -> None:
    """Refuse arguments that select a feature which is not modelled; each must be None, False, 0 or empty."""
    for name, value in arguments.items():
        if value is not None and not (isinstance(value, bool | int | str) and not value):
            raise unsupported(op, f"argument {name}")


def short(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def require_dtype(op: str, name: str, tensor: torch.Tensor, allowed: Collection[torch.dtype]) -> None:
    """``name`` must have one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        one_of = " or ".join(short(dtype) for dtype in allowed)
        raise RuntimeError(f"{op}: {name} must be {one_of}, got {short(tensor.dtype)}")


def require_dim(op: str, name: str, tensor: torch.Tensor, *dims: int) -> None:
    """``name`` must have one of the given numbers of dimensions."""
    if tensor.dim() not in dims:
        one_of = " or ".join(str(dim) for dim in dims)
        raise RuntimeError(f"{op}: {name} must have {one_of} dimension(s), got shape {list(tensor.shape)}")


def require_shape(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    """``name`` must have exactly this shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise RuntimeError(f"{op}: {name} must have shape {list(shape)}, got {list(tensor.shape)}")


def require_contiguous(op: str, **tensors: torch.Tensor | None) -> None:
    """Each tensor that is given must be contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            strides = f"shape {list(tensor.shape)} with strides {list(tensor.stride())}"
            raise RuntimeError(f"{op}: {name} must be contiguous, got {strides}")


def require_ids(op: str, name: str, ids: torch.Tensor, upper: int) -> None:
    """Every element must lie in ``[0, upper)``."""
    if ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= upper:
            raise RuntimeError(f"{op}: {name} must lie in [0, {upper}), got values from {low} to {high}")


def require_unique(op: str, name: str, ids: torch.Tensor) -> None:
    """No element may occur twice in the whole tensor."""
    flat = ids.reshape(-1)
    if flat.numel() > 1:
        ordered = flat.sort().values
        twice = ordered[1:] == ordered[:-1]
        if bool(twice.any()):
            raise RuntimeError(f"{op}: {name} must not repeat, got {int(ordered[1:][twice][0])} more than once")


def poison(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor as the device leaves it when nothing is written: NaN, or for integers a value nobody produces."""
    if dtype.is_floating_point:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)
    return torch.full(tuple(shape), _POISON[dtype], dtype=dtype)


def scalar_type(op: str, number: int | torch.dtype | None) -> torch.dtype | None:
    """The dtype behind an ``int?`` dtype argument (c10 ScalarType numbers, which torch converts dtypes to)."""
    if number is None or isinstance(number, torch.dtype):
        return number
    # c10/core/ScalarType.h
    known = {
        0: torch.uint8,
        1: torch.int8,
        3: torch.int32,
        4: torch.int64,
        5: torch.float16,
        6: torch.float32,
        15: torch.bfloat16,
    }
    if number not in known:
        raise unsupported(op, f"dtype number {number}")
    return known[number]
