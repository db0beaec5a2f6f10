# SPDX-License-Identifier: Apache-2.0
"""Records calls of kernels written in Python into the graph that a stream is captured into.

Like the C++ side: the kernel runs during the capture so that the sizes of its results are known, what it wrote is undone
when the capture ends, and every replay runs it on the recorded addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .alias import borrow_cpu

Kernel = Callable[..., Any]
Ordered = Callable[[list[torch.Tensor]], Any]

#: Arguments that an operator writes and returns although its schema does not say so.
UNMARKED_WRITES: Mapping[str, tuple[str, ...]] = {
    "npu::npu_apply_rotary_pos_emb": ("query", "key"),
    "npu::npu_fused_infer_attention_score.out": ("out",),
    "npu::npu_fused_infer_attention_score_v2.out": ("out",),
}


def written_arguments(name: str, schema: torch._C.FunctionSchema) -> frozenset[str]:
    """The arguments that operator ``name`` writes."""
    marked = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return frozenset(marked).union(UNMARKED_WRITES.get(name, ()))


def returned_arguments(name: str, schema: torch._C.FunctionSchema) -> list[str] | None:
    """The arguments that the results are, in order, or None if some result is new memory."""
    if name in UNMARKED_WRITES:
        return list(UNMARKED_WRITES[name])
    found: list[str] = []
    for result in schema.returns:
        sets = result.alias_info.before_set if result.alias_info is not None else None
        same = [
            a.name for a in schema.arguments if sets and a.alias_info is not None and a.alias_info.before_set == sets
        ]
        if not same:
            return None
        found += same[:1]
    return found


def _frozen(value: Any) -> Any:
    """An argument as a replay sees it: device memory by address, everything on the host by value."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.device.type == "cpu" else borrow_cpu(value)
    if isinstance(value, list | tuple):
        return [_frozen(item) for item in value]
    return value


class _Call:
    """One call as a replay makes it; its host tensors also as the caller holds them."""

    def __init__(self, given: Mapping[str, Any], split: int) -> None:
        frozen = {argument: _frozen(value) for argument, value in given.items()}
        names = list(frozen)
        self.positional = [frozen[name] for name in names[:split]]
        self.keywords = {name: frozen[name] for name in names[split:]}
        self._host = [
            (argument, callers, kept)
            for argument in given
            for callers, kept in zip(tensors_in(given[argument]), tensors_in(frozen[argument]), strict=True)
            if callers.device.type == "cpu"
        ]

    def check_hosttensors_in(self) -> None:
        """Refuse a replay that its caller may take for one with new values."""
        for argument, callers, kept in self._host:
            if not torch.equal(callers, kept):
                raise RuntimeError(
                    f"argument {argument} is on the host and has changed since the call was captured or updated; a replay "
                    "takes the old value"
                )


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def update(
    stream: Any,
    name: str,
    kernel: Kernel,
    given: Mapping[str, Any],
    split: int,
    returned: list[str] | None,
    ordered: Ordered | None,
) -> Any:
    """Replace a recorded call by this one, which does not run. The result is the arguments that it would write.

    ``ordered``: see ``capture``.
    """
    if returned is None:
        stream.refuse(name, "its result would be new memory; call the .out form")
    assert returned is not None
    stream.add(name, _replay(kernel, _Call(given, split), []), ordered([]) if ordered else None)
    results = [tensor for argument in returned for tensor in tensors_in(given[argument])]
    return results[0] if len(results) == 1 else tuple(results) if results else None


def capture(
    stream: Any,
    name: str,
    kernel: Kernel,
    given: Mapping[str, Any],
    split: int,
    written: frozenset[str],
    run: Callable[[], tuple[Any, list[torch.Tensor]]],
    ordered: Ordered | None,
) -> Any:
    """Run the call once and record it.

    ``run`` runs it and returns its result and those tensors of it that are new memory, in order. The first ``split`` of
    the arguments ``given`` are positional. ``ordered``, where order is checked, takes the new tensors and returns what the
    call touches at every replay.
    """
    call = _Call(given, split)
    for argument in written:
        for tensor in tensors_in(given[argument]):
            stream.save(tensor)
    result, new = run()
    targets = [borrow_cpu(tensor) for tensor in new]
    for tensor in new:
        stream.poison(tensor)
    stream.add(name, _replay(kernel, call, targets), ordered(new) if ordered else None)
    return result


def _replay(kernel: Kernel, call: _Call, targets: list[torch.Tensor]) -> Callable[[], None]:
    known = {id(tensor) for tensor in tensors_in([*call.positional, *call.keywords.values()])}

    def replay() -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            call.check_hosttensors_in()
            result = kernel(*call.positional, **call.keywords)
            fresh = [tensor for tensor in tensors_in(result) if id(tensor) not in known]
            for target, tensor in zip(targets, fresh, strict=True):
                if target.shape != tensor.shape:
                    raise RuntimeError(
                        f"the result has shape {tuple(tensor.shape)}, in the graph it had {tuple(target.shape)}"
                    )
                target.copy_(tensor)

    return replay
