# SPDX-License-Identifier: Apache-2.0
"""Runs the body of a Triton kernel of vLLM, program by program, on CPU tensors: the oracle of the port's torch versions.

Only the few operations of Triton's language that those kernels use. The kernel's function is taken out of vLLM's source, so
that neither vLLM nor Triton is imported.
"""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from tests.support.installed import vllm_file


@dataclass(frozen=True)
class Pointer:
    """Address of one or more elements in a tensor's memory."""

    memory: torch.Tensor
    offset: Any = 0

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.memory, self.offset + other)

    def __sub__(self, other: Any) -> Pointer:
        return Pointer(self.memory, self.offset - other)

    @property
    def dtype(self) -> Any:
        return type("pointer type", (), {"element_ty": self.memory.dtype})


class Language:
    """What the kernels call ``tl``; ``program`` is set before each run."""

    constexpr = staticmethod(lambda value: value)
    int32, int64, uint32, float32, float64 = torch.int32, torch.int64, torch.uint32, torch.float32, torch.float64

    def __init__(self) -> None:
        self.program: tuple[int, ...] = (0,)

    def program_id(self, axis: int = 0) -> torch.Tensor:
        return torch.tensor(self.program[axis])

    def load(self, pointer: Pointer, mask: Any = None, other: Any = 0) -> torch.Tensor:
        offset = torch.as_tensor(pointer.offset)
        if mask is None:
            return pointer.memory[offset]
        return torch.where(mask, pointer.memory[torch.where(mask, offset, 0)], other)

    def store(self, pointer: Pointer, value: Any, mask: Any = None) -> None:
        offset = torch.as_tensor(pointer.offset)
        value = torch.as_tensor(value).to(pointer.memory.dtype)
        if mask is not None:
            offset, value = offset[mask], value.expand(mask.shape)[mask]
        pointer.memory[offset] = value

    @staticmethod
    def max(values: torch.Tensor, axis: int = 0, return_indices: bool = False) -> Any:
        result = values.max(dim=axis)
        return (result.values, result.indices) if return_indices else result.values

    zeros = staticmethod(lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    full = staticmethod(lambda shape, value, dtype: torch.full(shape, value, dtype=dtype))
    arange = staticmethod(torch.arange)
    sum = staticmethod(lambda values, axis=0: values.sum(dim=axis))
    where = staticmethod(lambda condition, one, other: torch.where(torch.as_tensor(condition), one, other))
    maximum = staticmethod(lambda one, other: torch.maximum(torch.as_tensor(one), torch.as_tensor(other)))
    minimum = staticmethod(lambda one, other: torch.minimum(torch.as_tensor(one), torch.as_tensor(other)))


class Kernel:
    """One kernel of the installed vLLM.

    Args:
        name: dotted name, e.g. ``vllm.v1.spec_decode.utils.eagle_prepare_inputs_padded_kernel``.
    """

    def __init__(self, name: str) -> None:
        module, _, function = name.rpartition(".")
        source = vllm_file(*module.split(".")[1:]).with_suffix(".py")
        tree = ast.parse(source.read_text())
        definition = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        definition.decorator_list = []
        self._language = Language()
        scope: dict[str, Any] = {"tl": self._language}
        exec(compile(ast.Module([definition], []), str(source), "exec"), scope)
        self._function = scope[function]

    def run(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """What ``kernel[grid](**arguments)`` does; tensors are written in place."""
        pointers = {k: Pointer(v.view(-1)) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        for self._language.program in itertools.product(*(range(size) for size in grid)):
            self._function(**pointers)
