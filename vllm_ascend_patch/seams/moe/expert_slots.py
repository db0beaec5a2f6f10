# SPDX-License-Identifier: Apache-2.0
"""Loads experts to where load balancing has put them.

Upstream's loader puts each logical expert where it was when the engine started. Once experts have moved, a reload or a push
of weights would fill the wrong ones. A *slot* is a physical expert; which slots hold a logical expert is read from
upstream's load balancing state each time weights are about to be loaded into the running model.
"""

from __future__ import annotations

import functools
import weakref
from types import MethodType
from typing import Any

import torch

from vllm_ascend_patch.seams import serving

_SLOTS = "_ascend_slots"


def slot_loader(layer: Any, num_slots: int, num_experts: int) -> MethodType:
    """A weight loader for the parameters of ``layer`` that fills every slot of a logical expert.

    It is a method of the layer, as upstream's is, which upstream relies on when it reloads.
    """
    setattr(layer, _SLOTS, _by_expert([slot % num_experts for slot in range(num_slots)], num_experts))
    return MethodType(_load, layer)


def is_balanced(layer: Any) -> bool:
    """Whether load balancing moves the layer's experts."""
    return hasattr(layer, _SLOTS)


def slots_of(layer: Any, expert: int) -> list[int]:
    """The slots that a tensor for ``expert`` of upstream's list of names goes to: the list has one for each slot at the
    start, of which the first ones stand for the logical experts and the others repeat them.
    """
    slots: list[list[int]] | None = getattr(layer, _SLOTS, None)
    if slots is None:
        return [expert]
    return slots[expert] if expert < len(slots) else []


def expert_in(layer: Any, slot: int) -> int:
    """The logical expert that a slot holds."""
    slots: list[list[int]] = getattr(layer, _SLOTS, None) or []
    return next((expert for expert, held in enumerate(slots) if slot in held), slot)


def follow(runner: Any) -> None:
    """From now on whoever loads weights into the runner's model loads experts to where they are by then."""
    if getattr(runner, "eplb_state", None) is None:
        return
    model, reference = runner.get_model(), weakref.ref(runner)
    original = type(model).load_weights

    @functools.wraps(original)
    def load_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        runner = reference()
        if runner is not None:
            serving.entering(runner)
            _read_slots(runner)
        return original(self, *args, **kwargs)

    model.load_weights = MethodType(load_weights, model)


def _load(
    layer: Any,
    param: torch.nn.Parameter,
    loaded_weight: torch.Tensor,
    weight_name: str,
    shard_id: str,
    expert_id: int,
    return_success: bool = False,
) -> bool | None:
    """As upstream's ``weight_loader``, whose parameters these are; ``expert_id`` says which logical expert."""
    if loaded_weight.dim() == 3:
        raise NotImplementedError(
            f"{weight_name} holds all experts in one tensor, which cannot be loaded next to expert load balancing on Ascend "
            "NPUs: leave eplb_config out"
        )
    done = [
        layer.weight_loader(
            param, loaded_weight, weight_name, shard_id=shard_id, expert_id=slot, return_success=return_success
        )
        for slot in slots_of(layer, expert_id)
    ]
    return any(done) if return_success else None


_load.supports_moe_loading = True  # type: ignore[attr-defined]  # models ask the loader


def _read_slots(runner: Any) -> None:
    state = runner.eplb_state
    models = getattr(state, "model_states", None)
    pairs = (
        [(runner.get_model(), state.physical_to_logical_map)]
        if models is None
        else [(each.model, each.physical_to_logical_map) for each in models.values()]
    )
    for model, held in pairs:
        for owner, row in zip(model.moe_layers, held.tolist(), strict=False):
            for layer in owner.modules():
                slots = getattr(layer, _SLOTS, None)
                if slots is not None:
                    setattr(layer, _SLOTS, _by_expert(row, len(slots)))


def _by_expert(held: list[int], num_experts: int) -> list[list[int]]:
    return [[slot for slot, expert in enumerate(held) if expert == wanted] for wanted in range(num_experts)]
