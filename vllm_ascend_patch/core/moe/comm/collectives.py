# SPDX-License-Identifier: Apache-2.0
"""The even collectives under whichever name the installed torch has: 2.13 renamed them and warns about the old names."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

_dist: Any = dist
_all_gather = getattr(_dist, "all_gather_single", None) or _dist.all_gather_into_tensor
_reduce_scatter = getattr(_dist, "reduce_scatter_single", None) or _dist.reduce_scatter_tensor


def all_gather(local: torch.Tensor, group: dist.ProcessGroup, size: int) -> torch.Tensor:
    """``[N, ...]`` on each of ``size`` ranks -> ``[size * N, ...]`` in rank order, a new tensor."""
    gathered = local.new_empty((size * local.shape[0], *local.shape[1:]))
    _all_gather(gathered, local.contiguous(), group=group)
    return gathered


def reduce_scatter(partial: torch.Tensor, group: dist.ProcessGroup, size: int) -> torch.Tensor:
    """``[size * N, ...]`` partial sums -> this rank's ``[N, ...]`` of the totals, a new tensor."""
    total = partial.new_empty((partial.shape[0] // size, *partial.shape[1:]))
    _reduce_scatter(total, partial.contiguous(), group=group)
    return total
