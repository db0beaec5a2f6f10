# SPDX-License-Identifier: Apache-2.0
"""Keeps the first product's int8 weights in FRACTAL_NZ, where ``core/moe/fused_choice.py`` says so, and loads into them.

A checkpoint, and a reload that makes parameters anew, is loaded into upstream's parameter, which is laid out when weights
are processed. What is pushed into the running model comes to the loader here: it has upstream's loader write to a plain copy
and lays that out in the same memory, which captured graphs read.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

import torch

from vllm_ascend_patch.core.moe.activations import Activation
from vllm_ascend_patch.core.moe.fractal_nz import gives_nz, to_nd, to_nz
from vllm_ascend_patch.core.moe.fused_choice import FusedFacts, choose
from vllm_ascend_patch.seams import serving

from .expert_slots import is_balanced

logger = logging.getLogger(__name__)

_PLAIN_LOADER = "_ascend_plain_loader"


def is_fused(parameter: torch.Tensor) -> bool:
    """Whether a parameter is ``[E, H, 2I]`` in FRACTAL_NZ, and not upstream's ``[E, 2I, H]``."""
    return hasattr(parameter, _PLAIN_LOADER)


def keep_fused(layer: Any, activation: Activation) -> None:
    """Lay ``w13_weight``, int8 ``[E, 2I, H]``, out for the fused operator if it takes the layer; the log has the reason.

    Takes twice the weight's size besides for as long as it runs.
    """
    found = layer.w13_weight
    facts = FusedFacts(
        hidden_size=found.shape[2],
        intermediate_size=layer.w2_weight.shape[2],
        activation=activation.name if activation.limit is None else f"{activation.name} with a limit",
        plain_swiglu=activation.plain_swiglu,
        balanced=is_balanced(layer),
        gives_nz=gives_nz(found.device),
    )
    choice = choose(facts)
    text = "in FRACTAL_NZ, product, SwiGLU and quantisation in one operator" if choice.fused else "in ND"
    _say_once(f"W8A8 experts: weights of the first product {text} ({choice.reason})")
    if not choice.fused:
        return
    parameter = torch.nn.Parameter(to_nz(found.data.mT), requires_grad=False)
    parameter.__dict__.update(found.__dict__)
    setattr(parameter, _PLAIN_LOADER, found.weight_loader)
    parameter.weight_loader = MethodType(_load, layer)  # type: ignore[attr-defined]
    layer.w13_weight = parameter


def _load(
    layer: Any,
    param: torch.nn.Parameter,
    loaded_weight: torch.Tensor,
    weight_name: str,
    shard_id: str,
    expert_id: int,
    return_success: bool = False,
) -> bool | None:
    """As upstream's ``weight_loader``; for an expert of this rank it copies the whole parameter there and back, and takes up
    to three times its size meanwhile."""
    all_experts = loaded_weight.dim() == 3
    if not all_experts and int(layer._map_global_expert_id_to_local_expert_id(expert_id)) < 0:
        return False if return_success else None
    plain = torch.nn.Parameter(to_nd(param.data).mT.contiguous(), requires_grad=False)
    plain.__dict__.update(param.__dict__)
    loader = getattr(param, _PLAIN_LOADER)
    done = loader(plain, loaded_weight, weight_name, shard_id, expert_id, return_success=return_success)
    param.data.copy_(to_nz(plain.data.mT))
    return done


_load.supports_moe_loading = True  # type: ignore[attr-defined]  # models ask the loader


def _say_once(text: str) -> None:
    said = serving.current().moe.said
    if text not in said:
        said.add(text)
        logger.info("%s", text)
