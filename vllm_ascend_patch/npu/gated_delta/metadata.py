# SPDX-License-Identifier: Apache-2.0
"""What every layer with a state needs of a step: which rows are whose, and where each request's state is.

One block of vLLM's cache is one request's state; prefix caching, which would keep more of them, is off (``states.py``).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)

from vllm_ascend_patch.npu.attention.metadata import host_context_lens


class Piece(NamedTuple):
    """Requests that are computed at once, all with the same number of tokens: rows and requests, as slices."""

    rows: slice
    requests: slice


@dataclass
class NPUStateMetadata:
    """One step's batch.

    Attributes:
        pieces: all rows that belong to requests, in order; requests of one token each are one piece.
        blocks: ``[requests]``, int64, the block of each request's state.
        begun: ``[requests]``, whether tokens were computed before; a state that is not begun is whatever was there.
    """

    pieces: list[Piece]
    blocks: torch.Tensor
    begun: torch.Tensor


def pieces_of(query_starts: list[int]) -> list[Piece]:
    """Of a batch whose requests start at these rows, the last one ending at the last of them; requests of one token that
    follow each other are together, requests without tokens are left out."""
    found: list[Piece] = []
    singles = 0  # length of the run of one-token requests that ends here
    for request, (start, end) in enumerate(itertools.pairwise(query_starts)):
        if end - start == 1 and singles:
            last = found.pop()
            found.append(Piece(slice(last.rows.start, end), slice(last.requests.start, request + 1)))
        elif end > start:
            found.append(Piece(slice(start, end), slice(request, request + 1)))
        singles = singles + 1 if end - start == 1 else 0
    return found


class NPUStateMetadataBuilder(AttentionMetadataBuilder[NPUStateMetadata]):
    """Reads nothing from the device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reorder_batch_threshold = 1

    @classmethod
    def get_cudagraph_support(cls, *_: Any, **__: Any) -> AttentionCGSupport:
        return AttentionCGSupport.NEVER

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> NPUStateMetadata:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
        contexts = host_context_lens(common, common.num_reqs)
        lengths = [end - start for start, end in itertools.pairwise(starts)]
        begun = [context > length for context, length in zip(contexts, lengths, strict=True)]
        blocks = common.block_table_tensor[: common.num_reqs, 0].long()
        return NPUStateMetadata(pieces_of(starts), blocks, torch.tensor(begun, device=blocks.device))


class NPUStateBackend(AttentionBackend):
    """What vLLM asks of the backend of layers with states: no attention, so no implementation."""

    @staticmethod
    def get_name() -> str:
        return "NPU_STATE"

    @staticmethod
    def get_impl_cls() -> type[Any]:
        raise NotImplementedError("layers with states compute by themselves")

    @staticmethod
    def get_builder_cls() -> type[NPUStateMetadataBuilder]:
        return NPUStateMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        return True
