# SPDX-License-Identifier: Apache-2.0
"""Constant tensors that MoE layers need at every step: made once per device, kept, and never written to.

A step takes a view of what is kept; a larger step than any before makes a larger tensor. The smaller one stays alive too,
because a captured graph may read it: sizes double, so all of them together take less than twice the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

_SMALLEST = 64
_kept: dict[Hashable, list[torch.Tensor]] = {}


def zero_rows(rows: int, like: torch.Tensor) -> torch.Tensor:
    """``[rows, ...]`` zeros (False) with the other dimensions, dtype and device of ``like``."""
    key = ("zeros", like.device, like.dtype, like.shape[1:])
    return at_least(rows, key, lambda n: like.new_zeros((n, *like.shape[1:])))[:rows]


def one_rows(rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """``[rows, width]`` ones with the dtype and device of ``like``."""
    return at_least(rows, ("ones", like.device, like.dtype, width), lambda n: like.new_ones((n, width)))[:rows]


def row_index(rows: int, device: torch.device) -> torch.Tensor:
    """int32 ``[rows]``: 0, 1, 2, ..."""
    return at_least(rows, ("index", device), lambda n: torch.arange(n, dtype=torch.int32, device=device))[:rows]


def first_rows(rows: int, active: int, device: torch.device) -> torch.Tensor:
    """bool ``[rows]``: True for the first ``active``, at most ``rows``, False after them."""

    def make(n: int) -> torch.Tensor:
        return torch.arange(2 * n, device=device) < n

    edge = at_least(2 * rows, ("edge", device), lambda n: make(n // 2))
    start = edge.shape[0] // 2 - active
    return edge[start : start + rows]


def spread_ids(rows: int, top_k: int, num_experts: int, device: torch.device) -> torch.Tensor:
    """Expert ids for rows without a token: int32 ``[rows, top_k]``, valid, distinct within a row, evenly spread."""

    def make(n: int) -> torch.Tensor:
        return (torch.arange(n * top_k, dtype=torch.int32, device=device) % num_experts).view(n, top_k)

    return at_least(rows, ("ids", device, top_k, num_experts), make)[:rows]


def _capturing() -> bool:
    import torch_npu

    return torch_npu.npu.is_current_stream_capturing()


def at_least(rows: int, key: Hashable, make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """The kept tensor for ``key`` if it has ``rows`` rows, else a new one of twice the size."""
    kept = _kept.get(key)
    if kept is not None and kept[-1].shape[0] >= rows:
        return kept[-1]
    size = max(_SMALLEST, 1 << max(rows - 1, 0).bit_length())
    made = make(size)
    if made.device.type == "npu" and _capturing():
        return made  # written by the graph only: it belongs to that graph
    _kept.setdefault(key, []).append(made)
    return made
