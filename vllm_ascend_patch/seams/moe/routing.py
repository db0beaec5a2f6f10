# SPDX-License-Identifier: Apache-2.0
"""Asks vLLM's router for the experts of each token, in releases where the MoE method does that and not the layer.

The router is handed to the method, or is the layer itself; its arguments are bound by name, because they changed with
almost every release. Which routing a model uses stays upstream's.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_ascend_patch.seams.by_name import parameters_of


def route(layer: Any, x: torch.Tensor, arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and expert ids, each ``[T, K]``.

    Args:
        layer: the MoE layer.
        x: tokens, ``[T, H]``.
        arguments: what vLLM passed to the method's ``apply`` by keyword.
    """
    select = getattr(arguments.get("router"), "select_experts", None) or layer.select_experts
    known = {"indices_type": torch.int32, **arguments, "hidden_states": x}
    chosen = {}
    for name in parameters_of(getattr(select, "__func__", select)):
        if name in known:
            chosen[name] = known[name]
        elif hasattr(layer, name):
            chosen[name] = getattr(layer, name)
    weights, ids, *_ = select(**chosen)
    return weights, ids
