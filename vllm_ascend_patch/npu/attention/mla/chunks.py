# SPDX-License-Identifier: Apache-2.0
"""Divides the context of a step's prefill requests into chunks that fit the workspace, where upstream's plan does not suit.

Until 0.27 vLLM gives every request a share of every chunk: one without context is in all of them, and a share need not start
with a block. The operators want both otherwise. The plan here has the form of upstream's later one. No vLLM here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, kw_only=True)
class ContextChunk:
    """Context of requests that follow each other, gathered and attended to at once. Names are upstream's, from 0.28 on.

    Attributes:
        request_slice: the requests, all of which have context in this chunk.
        token_slice: their new tokens.
        num_context_tokens: rows of the chunk.
        starts: first token of each request's share, a multiple of the block size; ``[requests]`` int32, on the device.
        cu_seq_lens: where shares begin and end, ``[requests + 1]`` int32, on the device.
        seq_lens: tokens of the shares, ``[requests]`` int32, on the host.
    """

    request_slice: slice
    token_slice: slice
    num_context_tokens: int
    starts: torch.Tensor
    cu_seq_lens: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True)
class ChunkedContext:
    """All chunks of a step; ``workspace``: ``[rows, 576]``, of which each chunk uses the first ones."""

    chunks: list[ContextChunk]
    workspace: torch.Tensor


def plan(context_lens: Sequence[int], rows: int, block_size: int) -> list[list[tuple[int, int, int]]]:
    """Shares (request, first token, tokens) by chunk.

    Requests of a chunk follow each other, each has one share in it of at least one token; shares begin with a block; a chunk
    has at most ``rows`` tokens, which is at least a block; a request's shares follow each other.
    """
    chunks: list[list[tuple[int, int, int]]] = []
    free = 0
    for request, length in enumerate(context_lens):
        start = 0
        while start < length:
            follows = bool(chunks) and chunks[-1][-1][0] == request - 1
            take = _share(length - start, free if follows else 0, block_size)
            if take == 0:
                chunks.append([])
                free = rows
                take = _share(length - start, rows, block_size)
            chunks[-1].append((request, start, take))
            free -= take
            start += take
    return chunks


def _share(left: int, room: int, block_size: int) -> int:
    """Tokens of the ``left`` that go into ``room``: all, or whole blocks."""
    return left if left <= room else room - room % block_size


def chunked_context(
    context_lens: Sequence[int], query_ends: Sequence[int], workspace: torch.Tensor, block_size: int
) -> ChunkedContext:
    """The chunks of requests with ``context_lens`` tokens in the cache and new tokens that end at ``query_ends``."""
    device = workspace.device
    chunks = []
    for shares in plan(context_lens, workspace.shape[0], block_size):
        first, last = shares[0][0], shares[-1][0]
        lens = [length for _, _, length in shares]
        chunks.append(
            ContextChunk(
                request_slice=slice(first, last + 1),
                token_slice=slice(query_ends[first - 1] if first else 0, query_ends[last]),
                num_context_tokens=sum(lens),
                starts=_int32([start for _, start, _ in shares]).to(device, non_blocking=True),
                cu_seq_lens=_int32([0, *accumulate(lens)]).to(device, non_blocking=True),
                seq_lens=_int32(lens),
            )
        )
    return ChunkedContext(chunks, workspace)


def _int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
