# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a ModelSlim checkpoint hold what its description says: tensors, dtypes and shapes, by the headers.

What the description itself asks for is ``modelslim.py``'s, how headers are read ``stored_tensors.py``'s. No weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .modelslim import DYNAMIC, INT4, MIXED, STATIC, Description
from .stored_tensors import StoredTensor

SCALE_BIAS_PARTS = 16
"""Columns that msModelSlim gives an int4 layer's scale_bias when ranks share its inputs."""
_BY_INPUTS = ("down_proj", "o_proj")  # which layers these are, by msModelSlim's rule
_FLOATS = ("F32", "BF16", "F16")
_NAMED = 4  # tensors in a message


class _Companion(NamedTuple):
    """A tensor that a quantised weight ``[N, K]`` comes with.

    Attributes:
        dtypes: as safetensors has them.
        per_output: its number of dimensions, the first being N; 0 for one value of the whole tensor.
        partial: columns for layers whose inputs ranks share, each a sum over as large a part of the inputs.
    """

    dtypes: tuple[str, ...]
    per_output: int
    partial: int = 1


_STATIC = {
    "input_scale": _Companion(_FLOATS, 0),
    "input_offset": _Companion((*_FLOATS, "I8", "I32"), 0),
    "deq_scale": _Companion((*_FLOATS, "I64"), 1),
    "quant_bias": _Companion(("I32",), 1),
}
_DYNAMIC = {"weight_scale": _Companion(_FLOATS, 2), "weight_offset": _Companion(_FLOATS, 2)}
_OPTIONAL = ("weight_offset",)
COMPANIONS: Mapping[str, Mapping[str, _Companion]] = {
    STATIC: _STATIC,
    DYNAMIC: _DYNAMIC,
    MIXED: {**_STATIC, **_DYNAMIC},
    INT4: {**_DYNAMIC, "scale_bias": _Companion(("F32",), 2, SCALE_BIAS_PARTS)},
}


def file_problems(description: Description, stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """What the files lack, have besides, or have in another dtype or shape: the tensor, its file, and what is expected."""
    source = description.source
    absent = [name for name in description.types if name not in stored]
    if absent:
        yield (
            f"{source} lists {_some(absent)}, which no file of the checkpoint has. Copy the files that are missing from the "
            "checkpoint's source"
        )
    surplus = [name for name in stored if name not in description.types]
    if surplus:
        yield (
            f"{stored[surplus[0]].file} has {_some(surplus)}, of which {source} does not say the type: the files and the "
            "description belong to different checkpoints. Copy both anew from one source"
        )
    for name, kind in description.types.items():
        weight = stored.get(name)
        if name.endswith(".weight") and kind in COMPANIONS and weight is not None:
            yield from _weight_problems(source, name, kind, weight, stored)


def _weight_problems(
    source: str, name: str, kind: str, weight: StoredTensor, stored: Mapping[str, StoredTensor]
) -> Iterator[str]:
    if weight.dtype != "I8" or len(weight.shape) != 2:
        halved = "outputs / 2" if kind == INT4 else "outputs"
        yield f"{name} is {weight}, where I8 [{halved}, inputs] is expected, since {source} says {kind}"
        return
    module, outputs = name.removesuffix(".weight"), weight.shape[0] * (2 if kind == INT4 else 1)
    for suffix, expected in COMPANIONS[kind].items():
        found = stored.get(f"{module}.{suffix}")
        columns = expected.partial if module.endswith(_BY_INPUTS) else 1
        shape = ((1,), (outputs,), (outputs, columns))[expected.per_output]
        wanted = f"{' or '.join(expected.dtypes)} {list(shape)} is expected beside {name} in {weight.file}"
        if found is None:
            if suffix not in _OPTIONAL:
                yield f"the checkpoint lacks {module}.{suffix}: {wanted}, since {source} says {kind}"
        elif found.dtype not in expected.dtypes or not (found.shape == shape or (shape == (1,) and found.shape == ())):
            yield f"{module}.{suffix} is {found}, where {wanted}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
