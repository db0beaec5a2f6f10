# SPDX-License-Identifier: Apache-2.0
"""Attention of one request, in float32. No argument rules and no layouts: those are the callers'."""

from __future__ import annotations

import torch

NO_BAND = 2**31 - 1


def band(queries: int, keys: int, pre_tokens: int, next_tokens: int, *, right_aligned: bool) -> torch.Tensor | None:
    """What lies outside a diagonal band, True = masked, ``[queries, keys]``; None when nothing does.

    Query i sees keys from ``i + shift - pre_tokens`` to ``i + shift + next_tokens``; shift is ``keys - queries`` if the
    band is aligned at the lower right corner, else 0.
    """
    shift = keys - queries if right_aligned else 0
    if pre_tokens - shift >= queries - 1 and next_tokens + shift >= keys - 1:
        return None
    distance = torch.arange(keys).unsqueeze(0) - torch.arange(queries).unsqueeze(1) - shift
    return (distance > next_tokens) | (distance < -pre_tokens)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    masked: torch.Tensor | None,
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``softmax(scale * q k^T) v`` with grouped heads.

    Args:
        query: ``[S, heads, D]``.
        key: ``[L, kv_heads, D]``; kv_heads divides heads.
        value: ``[L, kv_heads, Dv]``.
        masked: ``[S, L]``, True where a query must not see a key.
        sink: ``[heads]`` logits that take part in the softmax's sum and have no value.

    Returns:
        ``[S, heads, Dv]`` and the log-sum-exp ``[S, heads]``, float32. A row that sees no key is NaN / infinity.
    """
    queries, heads, size = query.shape
    keys, kv_heads, value_size = value.shape
    group = heads // kv_heads
    if keys == 0:
        zeros = torch.zeros(queries, heads, value_size, dtype=torch.float32)
        return zeros, zeros.new_full((queries, heads), float("inf"))
    # [kv_heads, group * S, D]: the heads that share keys are one matrix product.
    q = query.float().view(queries, kv_heads, group, size).permute(1, 2, 0, 3).reshape(kv_heads, group * queries, size)
    k = key.float().permute(1, 2, 0)
    v = value.float().transpose(0, 1)
    scores = torch.bmm(q, k).mul_(scale).view(heads, queries, keys)
    if masked is not None:
        scores.masked_fill_(masked, float("-inf"))
    lse = scores.logsumexp(dim=-1, keepdim=True)
    if sink is not None:
        lse = torch.logaddexp(lse, sink.float().view(heads, 1, 1))
    weights = scores.sub_(lse).exp_()  # NaN where nothing is visible: -inf - -inf
    out = torch.bmm(weights.view(kv_heads, group * queries, keys), v)
    out = out.view(kv_heads, group, queries, value_size).permute(2, 0, 1, 3).reshape(queries, heads, value_size)
    lse = lse.squeeze(-1).t()
    return out, lse.masked_fill(lse == float("-inf"), float("inf"))


def gather_pages(cache: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` rows behind a list of block ids; cache ``[blocks, block_size, kv_heads, D]``."""
    pages = cache[blocks.long()]
    return pages.reshape(-1, *cache.shape[2:])[:length]
