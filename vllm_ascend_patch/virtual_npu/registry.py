# SPDX-License-Identifier: Apache-2.0
"""Puts the reference kernels under the real operators: ``install()`` registers them for the NPU's dispatch key.

The adaptor around a kernel turns NPU tensors into CPU tensors over the same memory, refuses CPU tensors where the
device would, fills in the schema's defaults, and brings new results to the caller's device. What an operator computes is
the kernels' business. Importing this file registers nothing.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import graph, order
from .alias import alias_cpu, to_device
from .extension import load
from .kernels.storage_format import is_base, is_nz
from .kernels.table import (
    ATB_SCHEMAS,
    DEVICE_KERNELS,
    HOST_ARGUMENTS,
    KERNELS,
    ND_OPERATORS,
    NZ_ARGUMENTS,
    Kernel,
)

#: Operators of namespace npu that only allocate, view or describe memory: torch_npu's own code runs them as it is.
KEPT = frozenset(
    {
        "copy_memory_",
        "empty_with_format",
        "empty_with_swapped_memory",
        "get_npu_format",
        "get_storage_size",
        "npu_change_data_ptr",
        "unsafe_empty_with_format",
    }
)

_libraries: list[torch.library.Library] = []  # dropping a Library unregisters its kernels


@dataclass(frozen=True)
class _Rules:
    """What one operator demands of its tensors: where they may be and in which storage format."""

    shown: str
    host: frozenset[str]
    nz: frozenset[str]
    nd_only: bool


class _Crossing:
    """One call's tensors on their way to the CPU kernel and back.

    A class and not nested functions: a function that calls itself is part of a reference cycle, which would keep the
    call's tensors, hence device memory, until the next garbage collection.
    """

    def __init__(self, rules: _Rules) -> None:
        self.rules = rules
        self.originals: dict[int, torch.Tensor] = {}
        self.devices: set[torch.device] = set()
        self.fresh: list[torch.Tensor] = []

    def lower(self, argument: str, value: Any) -> Any:
        """``value`` with its NPU tensors as CPU tensors over the same memory; refuses what the operator would."""
        if isinstance(value, list | tuple):
            return [self.lower(argument, item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        rules = self.rules
        if value.device.type == "cpu":
            if argument in rules.host:
                return value
            raise RuntimeError(
                f"{rules.shown}: Expected all tensors to be on the same device. Expected NPU tensor, please check "
                f"whether the input tensor device is correct: {argument} is on cpu"
            )
        if rules.nd_only and not is_base(value):
            raise RuntimeError(f"{rules.shown}: {argument} must be in a plain storage format, got FRACTAL_NZ")
        if argument in rules.nz and not is_nz(value):
            raise RuntimeError(f"{rules.shown}: {argument} must be in FRACTAL_NZ (npu_format_cast(..., 29)), got ND")
        self.devices.add(value.device)
        alias = alias_cpu(value)
        self.originals[id(alias)] = value
        return alias

    def device(self) -> torch.device:
        """The one device of the tensors that were lowered."""
        if len(self.devices) > 1:
            found = sorted(map(str, self.devices))
            raise RuntimeError(f"{self.rules.shown}: Expected all tensors to be on the same device, got {found}")
        return next(iter(self.devices), torch.device("npu"))

    def lift(self, value: Any, device: torch.device) -> Any:
        """``value`` with arguments that the kernel returned as the caller's own, and new tensors on ``device``."""
        if isinstance(value, tuple | list):
            return type(value)(self.lift(item, device) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        original = self.originals.get(id(value))
        if original is None:
            self.fresh.append(to_device(value, device))
        return self.fresh[-1] if original is None else original


def _adapt(name: str, kernel: Kernel, schema: torch._C.FunctionSchema) -> Callable[..., Any]:
    """The function that the dispatcher calls for operator ``name``."""
    arguments = schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    positional = [a.name for a in arguments if not a.kwarg_only]
    keywords = [a.name for a in arguments if a.kwarg_only]
    shown = name.partition("::")[2]
    written, returned = graph.written_arguments(name, schema), graph.returned_arguments(name, schema)
    extension = load()
    stream_on, order_of = extension.GraphStream, order.checked(name, written) if extension.checks_order() else None

    rules = _Rules(
        shown, HOST_ARGUMENTS.get(name, frozenset()), NZ_ARGUMENTS.get(name, frozenset()), name in ND_OPERATORS
    )

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}
        crossing = _Crossing(rules)
        # DisableTorchFunction: a kernel's own calls must not see the caller's `with torch.device("npu")`.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            lowered = {argument: crossing.lower(argument, value) for argument, value in given.items()}
            device = crossing.device()

            def compute() -> tuple[Any, list[torch.Tensor]]:
                result = kernel(*(lowered[a] for a in positional), **{a: lowered[a] for a in keywords})
                return crossing.lift(result, device), crossing.fresh

            stream = stream_on(device.index or 0)
            if stream.runs:
                result, new = compute()
                if order_of is not None:
                    order_of(device, given, new)
                return result
            call = {a: given[a] for a in (*positional, *keywords)}
            ordered = None if order_of is None else functools.partial(order_of, device, given)
            if stream.updates:
                return graph.update(stream, name, kernel, call, len(positional), returned, ordered)
            return graph.capture(stream, name, kernel, call, len(positional), written, compute, ordered)

    return functools.update_wrapper(run, kernel)


def _refuse(name: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{name.partition('::')[2]}: the virtual NPU has no kernel for this operator; virtual_npu/manifest.py lists "
            "those it has"
        )

    return run


def _schemas(namespace: str) -> dict[str, torch._C.FunctionSchema]:
    """Every operator of a namespace: ``npu::name.overload`` -> schema."""
    found = {}
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith(f"{namespace}::"):
            found[schema.name + (f".{schema.overload_name}" if schema.overload_name else "")] = schema
    return found


def _register(library: torch.library.Library, short: str, function: Callable[..., Any]) -> None:
    """Put ``function`` under operator ``short`` of the library's namespace, in place of a kernel of torch_npu's own: newer
    builds of it register some in Python, which torch takes for a mistake unless it is told otherwise."""
    if "allow_override" in (torch.library.Library.impl.__kwdefaults__ or {}):
        library.impl(short, function, "PrivateUse1", allow_override=True)
    else:  # torch 2.7
        torch.library._impls.discard(f"{library.ns}/{short}/PrivateUse1")
        library.impl(short, function, "PrivateUse1")


def _install_namespace(
    namespace: str,
    kernels: Mapping[str, Kernel],
    *,
    refuse_others: bool,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda call: call,
) -> None:
    library = torch.library.Library(namespace, "IMPL")
    _libraries.append(library)
    for name, schema in _schemas(namespace).items():
        short = name.partition("::")[2]
        kernel = kernels.get(name)
        if kernel is not None:
            _register(library, short, wrap(_adapt(name, kernel, schema)))
        elif name in DEVICE_KERNELS:
            _register(library, short, DEVICE_KERNELS[name])
        elif (
            refuse_others
            and short.partition(".")[0] not in KEPT
            and torch._C._dispatch_has_kernel_for_dispatch_key(name, "PrivateUse1")
        ):
            _register(library, short, _refuse(name))


def _install_atb() -> None:
    """The ATB operators: define those the wheel could not, and let ``torch_npu._npu_*`` reach them."""
    import torch_npu
    from torch_npu.op_plugin.atb import _atb_ops

    present = _schemas("atb")
    definitions = torch.library.Library("atb", "FRAGMENT")
    _libraries.append(definitions)
    for short, signature in ATB_SCHEMAS.items():
        if f"atb::{short}" not in present:
            definitions.define(short + signature)
    _install_namespace("atb", KERNELS, refuse_others=True)
    for short in ATB_SCHEMAS:
        operator = getattr(torch.ops.atb, short)
        setattr(torch_npu, short, operator)
        setattr(_atb_ops, short, operator)


def put_around_operators(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Register every operator of namespace npu that has a kernel anew, with ``wrap`` around the call as the dispatcher makes
    it. For measurements: what happens within is this simulation's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel.*")
        _install_namespace("npu", KERNELS, refuse_others=False, wrap=wrap)


@functools.cache
def install() -> None:
    """Register every reference kernel, once per process; torch_npu must have been imported.

    An operator of namespace npu that has no kernel here raises NotImplementedError and names itself from then on.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel.*")
        _install_namespace("npu", KERNELS, refuse_others=True)
        _install_atb()
