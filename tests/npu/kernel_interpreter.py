# SPDX-License-Identifier: Apache-2.0
"""Runs the body of a Triton kernel of vLLM, program by program, on CPU tensors: the oracle of the port's torch
versions.

Only the few operations of Triton's language that those kernels use. The kernel's function is taken out of vLLM's
source, with the functions that it calls, so that neither vLLM nor Triton is imported.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.installed import vllm_file
from vllm_ascend_patch.core.kernels.sampling import uniform_noise


class Value(torch.Tensor):
    """What kernels calculate with; ``to`` knows the unsigned type, which torch has no arithmetic for."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return Word(self) if args and args[0] is torch.uint32 else super().to(*args, **kwargs)


def value(tensor: Any) -> torch.Tensor:
    return torch.as_tensor(tensor).as_subclass(Value)


class Word:
    """Unsigned 32-bit words, which wrap."""

    def __init__(self, bits: torch.Tensor) -> None:
        self.bits = bits.long() & 0xFFFFFFFF

    def to(self, dtype: Any) -> torch.Tensor:
        return value(self.bits).to(dtype)

    def _with(self, other: Any, operation: Callable[[torch.Tensor, Any], torch.Tensor]) -> Word:
        return Word(operation(self.bits, other.bits if isinstance(other, Word) else other))

    def __xor__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a ^ b)

    def __or__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a | b)

    def __and__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a & b)

    def __mul__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a * b)

    def __add__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a + b)

    def __lshift__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a << b)

    def __rshift__(self, other: Any) -> Word:
        return self._with(other, lambda a, b: a >> b)


@dataclass(frozen=True)
class Pointer:
    """Address of one or more elements in a tensor's memory, or of a tensor in a list of them."""

    memory: Any
    offset: Any = 0

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.memory, self.offset + other)

    def __sub__(self, other: Any) -> Pointer:
        return Pointer(self.memory, self.offset - other)

    @property
    def dtype(self) -> Any:
        return type("pointer type", (), {"element_ty": self.memory.dtype})


class Language:
    """What the kernels call ``tl``; ``program`` and ``grid`` are set before each run."""

    constexpr = staticmethod(lambda value: value)
    int1, int32, int64, uint32 = torch.bool, torch.int32, torch.int64, torch.uint32
    float32, float64 = torch.float32, torch.float64

    def __init__(self) -> None:
        self.program: tuple[int, ...] = (0,)
        self.grid: tuple[int, ...] = (1,)

    def program_id(self, axis: int = 0) -> torch.Tensor:
        return value(self.program[axis])

    def num_programs(self, axis: int = 0) -> int:
        return self.grid[axis]

    def load(self, pointer: Pointer, mask: Any = None, other: Any = 0) -> Any:
        if isinstance(pointer.memory, tuple):
            return Pointer(pointer.memory[int(pointer.offset)].view(-1))
        offset = torch.as_tensor(pointer.offset)
        if mask is None:
            return value(pointer.memory[offset].clone())
        mask = torch.as_tensor(mask)
        return value(torch.where(mask, pointer.memory[torch.where(mask, offset, 0)], other))

    def store(self, pointer: Pointer, stored: Any, mask: Any = None) -> None:
        offset, stored = torch.as_tensor(pointer.offset), torch.as_tensor(stored).to(pointer.memory.dtype)
        if mask is not None:
            offset, stored, mask = torch.broadcast_tensors(offset, stored, torch.as_tensor(mask))
            offset, stored = offset[mask], stored[mask]
        pointer.memory[offset] = stored

    def atomic_or(self, pointer: Pointer, bits: torch.Tensor, mask: torch.Tensor) -> None:
        for offset, bit in zip(pointer.offset[mask].tolist(), bits[mask], strict=True):
            pointer.memory[offset] |= bit

    def atomic_add(self, pointer: Pointer, added: int, mask: torch.Tensor) -> None:
        for offset in pointer.offset[mask].tolist():
            pointer.memory[offset] += added

    @staticmethod
    def max(values: torch.Tensor, axis: int = 0, return_indices: bool = False) -> Any:
        result = values.max(dim=axis)
        return (result.values, result.indices) if return_indices else result.values

    @staticmethod
    def rand(seed: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """The port's own: which generator draws is not part of what the kernels decide."""
        return value(uniform_noise(torch.as_tensor(seed), torch.as_tensor(offset)))

    range = static_range = staticmethod(range)
    debug_barrier = staticmethod(lambda: None)
    pointer_type = staticmethod(lambda element: element)
    cast = staticmethod(lambda pointer, kind: pointer)
    multiple_of = staticmethod(lambda pointer, by: pointer)
    cdiv = staticmethod(lambda one, other: -(-one // other))
    exp = staticmethod(lambda values: torch.exp(torch.as_tensor(values)))
    log = staticmethod(lambda values: torch.log(torch.as_tensor(values)))
    zeros = staticmethod(lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    zeros_like = staticmethod(torch.zeros_like)
    full = staticmethod(lambda shape, filled, dtype: torch.full(shape, filled, dtype=dtype))
    arange = staticmethod(lambda start, end: value(torch.arange(start, end)))
    sum = staticmethod(lambda values, axis=0: values.sum(dim=axis))
    argmax = staticmethod(lambda values, axis=0: values.argmax(dim=axis))
    where = staticmethod(lambda condition, one, other: torch.where(torch.as_tensor(condition), one, other))
    maximum = staticmethod(lambda one, other: torch.maximum(torch.as_tensor(one), torch.as_tensor(other)))
    minimum = staticmethod(lambda one, other: torch.minimum(torch.as_tensor(one), torch.as_tensor(other)))


class _Device:
    """What the kernels call ``tldevice``."""

    log1p = staticmethod(torch.log1p)


class Kernel:
    """One kernel of the installed vLLM.

    Args:
        name: dotted name, e.g. ``vllm.v1.spec_decode.utils.eagle_prepare_inputs_padded_kernel``.
    """

    def __init__(self, name: str) -> None:
        module, _, function = name.rpartition(".")
        self._language = Language()
        scope: dict[str, Any] = {"tl": self._language, "tldevice": _Device}
        _define(module, {function}, scope)
        self._function = scope[function]

    @property
    def parameters(self) -> tuple[str, ...]:
        code = self._function.__code__
        return tuple(code.co_varnames[: code.co_argcount])

    def run(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """What ``kernel[grid](**arguments)`` does; tensors are written in place, a tuple of them stands for their
        addresses."""
        pointers = {name: self._pointer(argument) for name, argument in arguments.items()}
        self._language.grid = grid
        for self._language.program in itertools.product(*(range(size) for size in grid)):
            self._function(**pointers)

    @staticmethod
    def _pointer(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return Pointer(argument.view(-1) if argument.is_contiguous() else argument)
        return Pointer(argument) if isinstance(argument, tuple) else argument


def _define(module: str, wanted: set[str], scope: dict[str, Any]) -> None:
    """Define the functions and constants of that name, and what these use, out of the module's source."""
    path: Path = vllm_file(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm.v1"):
            for name in {alias.name for alias in node.names} & wanted - scope.keys():
                _define(node.module, {name}, scope)
        names = {node.name} if isinstance(node, ast.FunctionDef) else _assigned(node)
        if not names & wanted - scope.keys():
            continue
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
        exec(compile(ast.Module([node], []), str(path), "exec"), scope)
        _define(module, {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}, scope)


def _assigned(node: ast.stmt) -> set[str]:
    return (
        {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Assign)
        else set()
    )
