# SPDX-License-Identifier: Apache-2.0
"""Compares every operator of namespace npu that runs with its reference kernel, call by call, on the same arguments.

A dispatch mode sees the calls that the package's own functions make, hence exactly the arguments that they pass. The
reference kernels are those of the virtual NPU (``virtual_npu/kernels``), plain torch on CPU tensors; they need
no virtual NPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_ascend_patch.virtual_npu.kernels.table import KERNELS

from .values import worst_of

#: Operators that communicate; their reference is a float64 loop over the whole layer (ranks.py).
COMMUNICATING = ("npu_moe_distribute_dispatch", "npu_moe_distribute_combine")


def _same_elements(self: torch.Tensor, acl_format: int, *_: Any, **__: Any) -> torch.Tensor:
    """``npu_format_cast`` on the CPU, whose tensors have one format: elements and shape stay."""
    return self


_REFERENCES = {**KERNELS, "npu::npu_format_cast": _same_elements}


class Comparison(TorchDispatchMode):
    """While active, ``errors[operator]`` is its largest error, as a multiple of what is allowed; ``calls`` counts."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.shapes: dict[str, list[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        kernel = _REFERENCES.get(func.name()) if func.namespace == "npu" else None
        if kernel is None or func.overloadpacket.__name__.startswith(COMMUNICATING):
            return func(*args, **kwargs)
        given = _by_name(func._schema, args, kwargs)
        before = {name: _on_cpu(value) for name, value in given.items()}
        result = func(*args, **kwargs)
        expected = kernel(
            *(before[a.name] for a in func._schema.arguments if not a.kwarg_only),
            **{a.name: before[a.name] for a in func._schema.arguments if a.kwarg_only},
        )
        pairs = list(zip(_tensors(result), _tensors(expected), strict=True))
        pairs += [(found, kept) for name in given for found, kept in _written(func._schema, name, given, before)]
        name = func.overloadpacket.__name__
        self.errors[name] = max(self.errors.get(name, 0.0), worst_of(pairs))
        self.calls[name] = self.calls.get(name, 0) + 1
        self.shapes.setdefault(name, []).append(" ".join(_shape(t) for t in _tensors(list(given.values()))[:2]))
        return result

    def describe(self, name: str) -> str:
        """Figures of an operator that was called."""
        shapes = "; ".join(dict.fromkeys(self.shapes[name]))
        return f"{self.calls[name]} call(s), largest error {self.errors[name]:.2g} of what is allowed: {shapes}"


def _by_name(schema: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    positional = dict(zip((a.name for a in schema.arguments), args, strict=False))
    return {a.name: {**positional, **kwargs}.get(a.name, a.default_value) for a in schema.arguments}


def _on_cpu(value: Any) -> Any:
    """A copy with the same strides, for kernels that are strict about them."""
    if isinstance(value, list | tuple):
        return [_on_cpu(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return copy.copy_(value)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _written(schema: Any, name: str, given: Mapping[str, Any], before: Mapping[str, Any]) -> list[Any]:
    argument = next(a for a in schema.arguments if a.name == name)
    if argument.alias_info is None or not argument.alias_info.is_write:
        return []
    return list(zip(_tensors(given[name]), _tensors(before[name]), strict=True))


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
