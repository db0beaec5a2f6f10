# SPDX-License-Identifier: Apache-2.0
"""What a compressed-tensors checkpoint is, and whether its files hold the scales of its int8 weights, by the headers.

How headers are read is ``stored_tensors.py``'s. No weight is read; no torch, no vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .stored_tensors import StoredTensor

METHOD = "compressed-tensors"
_WEIGHT, _PACKED, _SCALE = ".weight", ".weight_packed", ".weight_scale"
_FLOATS = ("F32", "BF16", "F16")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_ALL_LINEAR = "Linear"  # the target that stands for every linear layer, experts' among them


def scheme(config: Mapping[str, Any]) -> str:
    """The parsed ``quantization_config`` in words: weights and activations of each group of layers."""
    groups = [
        f"{_numbers(group.get('weights'))} weights, {_activations(group.get('input_activations'))}"
        for group in _groups(config)
    ]
    return f"{METHOD}: " + ("; ".join(dict.fromkeys(groups)) or "no group of layers")


def compressed_problems(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """What the files lack, or have without a use or in another shape: the tensor, its file, and what is expected.

    Args:
        config: the parsed ``config.json``.
        stored: the checkpoint's tensors.
    """
    own = config.get("quantization_config") or config.get("compression_config") or {}
    strategies = {str((group.get("weights") or {}).get("strategy")) for group in _groups(own)}
    packed = any(name.endswith(_PACKED) for name in stored)
    int8 = {name for name, tensor in stored.items() if name.endswith(_WEIGHT) and tensor.dtype == "I8"}
    for name, tensor in stored.items():
        module = name.removesuffix(_WEIGHT)
        if name in int8 and len(tensor.shape) == 2:
            yield from _scale_problems(module, tensor, stored.get(module + _SCALE), strategies)
        elif name.endswith(_SCALE):
            module = name.removesuffix(_SCALE)
            if module + _WEIGHT not in stored and module + _PACKED not in stored:
                yield (
                    f"the checkpoint lacks {module}{_PACKED if packed else _WEIGHT}: {name} is {tensor}, and is its scale. "
                    "Copy the files that are missing from the checkpoint's source"
                )
    kinds = {name.split(".")[-2] for name in int8 if name.count(".") > 1}
    if any(_ALL_LINEAR in (group.get("targets") or ()) for group in _groups(own)):
        for name, tensor in stored.items():
            if name.endswith(_WEIGHT) and tensor.dtype in _FLOATS and name.split(".")[-2] in kinds:
                yield from _float_problems(name, tensor, config, own.get("ignore") or ())


def _scale_problems(
    module: str, weight: StoredTensor, scale: StoredTensor | None, strategies: set[str]
) -> Iterator[str]:
    """Of one int8 weight ``[N, K]``: a scale per output, or one of the whole tensor where the checkpoint has such."""
    shapes: list[tuple[int, ...]] = [(weight.shape[0], 1)] if strategies != {"tensor"} else []
    if "tensor" in strategies:
        shapes += [(1,), ()]
    if not strategies <= {"channel", "tensor"}:
        return  # per group or block: what such checkpoints need is not known here
    wanted = (
        f"{' or '.join(_FLOATS)} {' or '.join(str(list(shape)) for shape in shapes)} is expected beside "
        f"{module}{_WEIGHT} in {weight.file}"
    )
    if scale is None:
        yield f"the checkpoint lacks {module}{_SCALE}: {wanted}, which is int8"
    elif scale.dtype not in _FLOATS or scale.shape not in shapes:
        yield f"{module}{_SCALE} is {scale}, where {wanted}"


def _float_problems(
    name: str, tensor: StoredTensor, config: Mapping[str, Any], ignore: tuple[str, ...] | list[str]
) -> Iterator[str]:
    """A weight that is float, while the same layer of others is int8: vLLM would round it to integers."""
    module = name.removesuffix(_WEIGHT)
    layer = _LAYER.search(name)
    text = {**config, **(config.get("text_config") or {})}
    drafts = layer is not None and int(layer[1]) >= (text.get("num_hidden_layers") or 0)  # loaded by drafters only
    if layer is None or drafts or any(_matches(module, pattern) for pattern in ignore):
        return
    yield (
        f"{name} is {tensor}, where I8 is expected: other layers' are int8, and config.json does not list it among those "
        "that stay as they are (quantization_config, ignore). Copy the checkpoint anew from its source"
    )


def _matches(module: str, pattern: str) -> bool:
    """As vLLM matches names; without what stands before a name's layer, which models call differently."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return pattern == module or _tail(pattern) == _tail(module)


def _tail(module: str) -> str:
    found = _LAYER.search(module)
    return module[found.start() :].lstrip(".") if found else module


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((config.get("config_groups") or {}).values())


def _numbers(part: Mapping[str, Any] | None) -> str:
    return f"{part.get('type')}{part.get('num_bits')} per {part.get('strategy')}" if part else "unquantised"


def _activations(part: Mapping[str, Any] | None) -> str:
    return f"{_numbers(part)} {'static ' if part and not part.get('dynamic') else ''}activations"
