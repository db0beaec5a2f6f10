# SPDX-License-Identifier: Apache-2.0
"""Arguments that every layer passes to the attention operators: the causal mask, the mode of an ND cache. No vLLM here."""

from __future__ import annotations

from functools import cache

import torch

from .layout import MASK_SIZE

CAUSAL_RIGHT_DOWN = 3
"""sparse_mode: causal, aligned to the last query and the last key."""


@cache
def causal_mask(device: torch.device) -> torch.Tensor:
    """int8 ``[2048, 2048]``, 1 above the diagonal: 1 means masked. Made once and kept, so memory profiling has to see it."""
    return torch.triu(torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.int8, device=device), diagonal=1)


@cache
def nd_cache_mode() -> dict[str, str]:
    """torch_npu 2.13 added ``cache_mode`` with a default that means another memory layout; 2.7 has no such argument."""
    schema = torch.ops.npu.npu_scatter_pa_kv_cache.default._schema
    return {"cache_mode": "Norm"} if any(a.name == "cache_mode" for a in schema.arguments) else {}
