# SPDX-License-Identifier: Apache-2.0
"""Refuses a checkpoint that lacks a tensor of a layer whose weights are ours, while it is loaded.

vLLM counts a parameter as loaded once any tensor was loaded into it, be it one expert's of many. Here each tensor has a mark
in the parameter (``core/weights.py``), written when the parameter is made and looked for when the weights are processed. A
reload makes the parameters anew, without marks; there upstream's own list of what it loaded is read.

Which parameters are ours, and how the checkpoint calls their tensors, the layer's ``Owner`` says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from vllm_ascend_patch.core import weights

# Formats whose weights are no checkpoint's, or arrive after they were processed.
_NOT_A_CHECKPOINT = ("dummy", "sharded_state", "runai_streamer_sharded")
_MARKED = "_ascend_marked"
_AWAITED = "_ascend_awaited"
_SEEN = "_ascend_seen"
_NAMED = 8  # tensors in a message


@runtime_checkable
class Owner(Protocol):
    """Whoever takes a layer's parameters for its own; found on the layer as its method, or as its scheme's kernel."""

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """The row that each checkpoint tensor begins at in a parameter, seen as ``[E, R, C]``; empty if it is not ours."""

    def loaded(self, layer: Any, arguments: dict[str, Any], parts: int) -> list[tuple[int, int]]:
        """(local expert, part) that a call of the weight loader with ``arguments`` fills, of ``parts`` parts per expert."""

    def tensor_name(self, layer: Any, name: str, expert: int, part: int) -> str:
        """How the checkpoint calls the tensor."""


@contextmanager
def marking(load_format: str) -> Iterator[None]:
    """Parameters that are made meanwhile are marked."""
    if load_format in _NOT_A_CHECKPOINT:
        yield
        return
    handle = register_module_parameter_registration_hook(_mark)
    try:
        yield
    finally:
        handle.remove()


def refuse_unwritten(layer: Any, owner: Owner) -> None:
    """Raise ``ValueError`` if a tensor of ``layer`` was not in the checkpoint; called when its weights are processed."""
    layer.__dict__.pop(_AWAITED, None)
    layer.__dict__[_SEEN] = True  # parameters that are made from now on hold what was loaded
    missing = []
    for name in sorted(layer.__dict__.pop(_MARKED, ())):
        parameter = getattr(layer, name)
        rows = owner.first_rows(layer, name, parameter)
        missing += [(name, *place) for place in weights.unwritten(_by_expert(parameter), rows)]
    missing += _left_out_of_reload(layer, owner)
    if missing:
        raise lacks([owner.tensor_name(layer, *place) for place in missing])


@contextmanager
def whole_reload(model: Any) -> Iterator[None]:
    """A reload of a whole checkpoint; ``ValueError`` for a layer that none of its tensors belongs to. Upstream would leave
    such a layer as it is.
    """
    if not _reloads_by_layer():
        yield
        return
    ours = [(layer, owner) for layer in model.modules() if (owner := owner_of(layer)) is not None]
    for layer, _ in ours:
        layer.__dict__[_AWAITED] = True
    yield
    missing = []
    for layer, owner in ours:
        if layer.__dict__.pop(_AWAITED, False):
            missing += [owner.tensor_name(layer, *place) for place in _places(layer, owner)]
    if missing:
        raise lacks(missing)


def put_back(model: Any) -> None:
    """After a reload that failed: layers that wait for their new weights get the old ones back."""
    if not _reloads_by_layer():
        return
    from vllm.model_executor.model_loader.reload import layerwise

    for layer in model.modules():
        info = layerwise.get_layerwise_info(layer)
        if info.can_load():
            if info.kernel_tensors is not None:  # maybe empty: attention drops parameters that it has read
                layerwise._place_kernel_tensors(layer, info)
            info.reset()


def owner_of(layer: Any) -> Owner | None:
    """Who takes the layer's parameters for its own, if it is one of ours."""
    for candidate in (getattr(layer, "quant_method", None), getattr(getattr(layer, "scheme", None), "kernel", None)):
        if isinstance(candidate, Owner):
            return candidate
    return None


def _mark(layer: Any, name: str, parameter: torch.Tensor | None) -> None:
    owner = owner_of(layer)
    if owner is None or parameter is None or parameter.is_meta or _SEEN in layer.__dict__:
        return
    rows = owner.first_rows(layer, name, parameter)
    if rows:
        weights.mark(_by_expert(parameter), rows)
        layer.__dict__.setdefault(_MARKED, set()).add(name)


def _left_out_of_reload(layer: Any, owner: Owner) -> list[tuple[str, int, int]]:
    """(parameter, expert, part) for which a reload that is under way brought nothing."""
    if not _reloads_by_layer():
        return []
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    info = get_layerwise_info(layer)
    if not _reloading(info):
        return []
    found = set()
    for name, bound in info.loaded_weights:
        parts = len(owner.first_rows(layer, name, getattr(layer, name)))
        found |= {(name, *place) for place in owner.loaded(layer, bound.arguments, parts)}
    return [place for place in _places(layer, owner) if place not in found]


def _places(layer: Any, owner: Owner) -> list[tuple[str, int, int]]:
    """(parameter, local expert, part) of every tensor of a checkpoint that belongs to the layer."""
    found = []
    for name, parameter in layer.named_parameters(recurse=False):
        parts = len(owner.first_rows(layer, name, parameter))
        experts = _by_expert(parameter).shape[0] if parts else 0
        found += [(name, expert, part) for expert in range(experts) for part in range(parts)]
    return found


def lacks(names: list[str]) -> ValueError:
    """The error that names tensors that no file of the checkpoint has."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ValueError(
        f"the checkpoint lacks {', '.join(names[:_NAMED])}{more}: what is served would be noise there. Use a complete "
        "checkpoint"
    )


def _reloads_by_layer() -> bool:
    """Whether a reload makes layers anew; earlier releases load into the running weights, and process nothing again."""
    return importlib.util.find_spec("vllm.model_executor.model_loader.reload") is not None


def _reloading(info: Any) -> bool:
    return bool(info.kernel_tensors and info.kernel_tensors[0])


def _by_expert(parameter: torch.Tensor) -> torch.Tensor:
    """``[E, R, C]`` of a parameter of experts, ``[1, R, C]`` or ``[1, R, 1]`` of a linear layer's."""
    data = parameter.data
    if data.dim() == 1:
        data = data.unsqueeze(1)
    return data if data.dim() == 3 else data.unsqueeze(0)
