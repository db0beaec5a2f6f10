# SPDX-License-Identifier: Apache-2.0
"""Builds, once per step, what every attention layer of that step needs.

Lengths are host integers because the operator takes them so. Nothing is launched before a layer asks, and nothing is read
from the device here, except for the later forwards of a drafter whose steps are scheduled in turn: how many drafts were
refused is known on the device only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vllm_ascend_patch.seams import serving

from .graph_tasks import GraphTasks
from .interface import AttentionMetadataBuilder, CommonAttentionMetadata
from .layout import half_page_slots, null_block_slots


@dataclass
class NPUAttentionMetadata:
    """One step's batch. Requests with one query token stand first (``num_decodes`` of them).

    Not frozen and without slots: upstream's builders of derived backends (chunked local attention) add to it.

    ``query_ends`` are cumulative query lengths, ``context_lens`` are per-request key lengths. ``block_table`` (``[requests,
    blocks per request]``) and ``slot_mapping`` (``[rows]``) are vLLM's. In a step that a full graph runs, requests and rows
    are those of the graph: the ones after ``num_tokens`` belong to no request, have key length 0 and slot -1.

    Attributes:
        dummy: the forward is one without requests: no row has a slot.
        tasks: where attention's calls are recorded, while a full graph is captured.
    """

    num_tokens: int
    num_decodes: int
    query_ends: list[int]
    context_lens: list[int]
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    block_size: int
    dummy: bool = False
    tasks: GraphTasks | None = None

    @cached_property
    def replayed_lens(self) -> list[int]:
        """Key lengths of a replay; an idle rank's rows attend to nothing, though upstream gives them a length."""
        return [0] * len(self.context_lens) if self.dummy else self.context_lens

    def correct_lengths(self, lens: list[int]) -> None:
        """Take ``lens`` for those of the first requests; the others are padding."""
        self.context_lens[: len(lens)] = lens

    @cached_property
    def page_table(self) -> torch.Tensor:
        """The block table in the units of ``layout.split_pages``. Made by the first layer that asks, if need be in a graph:
        vLLM's tables stay where they are from step to step."""
        return self.block_table * 2

    @cached_property
    def slots(self) -> torch.Tensor:
        """The slots in the units of ``layout.split_pages``; those of all rows, with a graph, else of the real ones."""
        if self.dummy and self.tasks is None:
            return null_block_slots(self.num_tokens, self.block_size, self.slot_mapping.device)
        if self.tasks is None:
            return half_page_slots(self.slot_mapping[: self.num_tokens], self.block_size)
        without = null_block_slots(len(self.slot_mapping), self.block_size, self.slot_mapping.device)
        slots = half_page_slots(self.slot_mapping, self.block_size)
        return torch.where(self.slot_mapping < 0, without.to(slots.dtype), slots)


class NPUAttentionMetadataBuilder(AttentionMetadataBuilder[NPUAttentionMetadata]):
    """Asks the runner to put single-token requests first, so that they make one operator call."""

    def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        self.block_size: int = kv_cache_spec.block_size
        self.reorder_batch_threshold = 1

    @classmethod
    def get_cudagraph_support(cls, *_: Any, **__: Any) -> Any:
        """Asked where graphs of whole steps are captured: steps whose requests all have the same number of tokens."""
        return uniform_batches()

    def build_for_drafting(
        self, common_attn_metadata: CommonAttentionMetadata, draft_index: int
    ) -> NPUAttentionMetadata:
        """Upstream's host lengths still count refused drafts from the second forward of a drafter on."""
        metadata = self.build(0, common_attn_metadata, fast_build=True)
        if draft_index > 0:
            metadata.correct_lengths(drafted_context_lens(common_attn_metadata, common_attn_metadata.num_reqs))
        return metadata

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> NPUAttentionMetadata:
        common = common_attn_metadata
        num_reqs, num_rows = common.num_reqs, common.num_actual_tokens
        query_starts = common.query_start_loc_cpu[: num_reqs + 1].tolist()
        query_ends = query_starts[1:]
        num_decodes = 0
        while num_decodes < num_reqs and query_ends[num_decodes] == num_decodes + 1:
            num_decodes += 1
        return NPUAttentionMetadata(
            num_tokens=min(num_rows, query_starts[-1]),
            num_decodes=num_decodes,
            query_ends=query_ends,
            context_lens=host_context_lens(common, num_reqs),
            block_table=common.block_table_tensor[:num_reqs],
            slot_mapping=common.slot_mapping[:num_rows],
            block_size=self.block_size,
            dummy=serving.current().step.dummy,
        )


def uniform_batches() -> Any:
    """Upstream's name for graphs of whole steps whose requests all have the same number of tokens."""
    try:
        from vllm.v1.attention.backend import AttentionCGSupport
    except ImportError:  # before 0.14; 0.10.0 has none and does not ask
        from vllm.v1.attention.backends.utils import AttentionCGSupport

    return AttentionCGSupport.UNIFORM_BATCH


def host_context_lens(common: CommonAttentionMetadata, num_reqs: int) -> list[int]:
    """Key lengths on the host, exact: where upstream's are a bound, the model runner has corrected them before."""
    for name in ("seq_lens_cpu_upper_bound", "seq_lens_cpu"):  # the second name in older releases
        lens = getattr(common, name, None)
        if lens is not None:
            return lens[:num_reqs].tolist()
    raise RuntimeError("vLLM gave the attention backend no host copy of the sequence lengths")


def drafted_context_lens(common: CommonAttentionMetadata, num_reqs: int) -> list[int]:
    """Key lengths of a drafter's forwards after its first one."""
    refused = serving.current().step.refused
    if refused is None:
        return common.seq_lens[:num_reqs].tolist()
    lens = host_context_lens(common, num_reqs)
    return [length - drafts for length, drafts in zip(lens, refused(), strict=True)]
