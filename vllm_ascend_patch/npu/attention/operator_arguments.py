# SPDX-License-Identifier: Apache-2.0
"""Arguments that every layer passes to the attention operators: the mask, the mode of an ND cache. No vLLM here."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .layout import MASK_SIZE

CAUSAL_RIGHT_DOWN = 3
"""sparse_mode: causal, aligned to the last query and the last key."""
BAND = 4
"""sparse_mode: aligned like that, from ``pre_tokens`` keys before a query's own to ``next_tokens`` behind it."""


@cache
def causal_mask(device: torch.device) -> torch.Tensor:
    """int8 ``[2048, 2048]``, 1 above the diagonal: 1 means masked. Made once and kept, so memory profiling has to see it."""
    return torch.triu(torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.int8, device=device), diagonal=1)


def visible_keys(window: int | None, device: torch.device) -> dict[str, Any]:
    """The mask's arguments: a query sees its own token and all before it, or ``window`` tokens with its own."""
    arguments: dict[str, Any] = {"sparse_mode": CAUSAL_RIGHT_DOWN, "atten_mask": causal_mask(device)}
    if window is not None:
        arguments |= {"sparse_mode": BAND, "pre_tokens": window - 1, "next_tokens": 0}
    return arguments


@cache
def nd_cache_mode() -> dict[str, str]:
    """torch_npu 2.13 added ``cache_mode`` with a default that means another memory layout; 2.7 has no such argument."""
    schema = torch.ops.npu.npu_scatter_pa_kv_cache.default._schema
    return {"cache_mode": "Norm"} if any(a.name == "cache_mode" for a in schema.arguments) else {}
