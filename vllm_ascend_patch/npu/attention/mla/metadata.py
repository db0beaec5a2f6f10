# SPDX-License-Identifier: Apache-2.0
"""Adds to upstream's MLA metadata what the operators take from the host: lengths of decode and prefill requests.

Where the installed vLLM plans chunks of context otherwise than the operators want them, or has no class for prefill, it
adds these, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch

from vllm_ascend_patch.npu.attention.graph_tasks import GraphTasks
from vllm_ascend_patch.npu.attention.interface import CommonAttentionMetadata
from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE, null_block_slots
from vllm_ascend_patch.npu.attention.metadata import drafted_context_lens, host_context_lens, uniform_batches
from vllm_ascend_patch.seams import serving

from .chunks import chunked_context
from .interface import MLACommonDecodeMetadata, MLACommonMetadata, MLACommonMetadataBuilder, QueryLenSupport
from .prefill import NPUMLAPrefillBackend


@dataclass
class NPUMLADecodeMetadata(MLACommonDecodeMetadata):
    """``query_ends``: cumulative query lengths of the decode requests; ``context_lens``: their key lengths."""

    query_ends: list[int] = field(default_factory=list)
    context_lens: list[int] = field(default_factory=list)


@dataclass
class NPUMLAMetadata(MLACommonMetadata[NPUMLADecodeMetadata]):
    """Upstream's. In a step that a full graph runs, rows and requests are those of the graph, and all of them decode.

    Attributes:
        dummy: the forward is one without requests: no row has a slot.
        tasks: where attention's calls are recorded, while a full graph is captured.
    """

    dummy: bool = False
    tasks: GraphTasks | None = None

    @cached_property
    def replayed_lens(self) -> list[int]:
        """Key lengths of a replay; an idle rank's rows attend to nothing, though upstream gives them a length."""
        assert self.decode is not None
        return [0] * len(self.decode.context_lens) if self.dummy else self.decode.context_lens

    def correct_lengths(self, lens: list[int]) -> None:
        """Take ``lens`` for those of the first requests, as far as they decode."""
        if self.decode is not None:
            count = min(len(lens), len(self.decode.context_lens))
            self.decode.context_lens[:count] = lens[:count]

    @cached_property
    def padded_slots(self) -> torch.Tensor:
        """A slot for each row; rows without a request have distinct ones in vLLM's null block."""
        slots = self.slot_mapping.flatten()[: self.num_actual_tokens]
        without = null_block_slots(len(slots), BLOCK_SIZE, slots.device)
        return torch.where(slots < 0, without.to(slots.dtype), slots)


class NPUMLAMetadataBuilder(MLACommonMetadataBuilder[NPUMLAMetadata]):
    """Upstream's; requests whose drafts are verified decode, too, as long as all have the same number of them."""

    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.UNIFORM

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, *args, metadata_cls=NPUMLAMetadata, **kwargs)
        self._layer_name = layer_names[0]

    @classmethod
    def get_cudagraph_support(cls, *_: Any, **__: Any) -> Any:
        """Asked where graphs of whole steps are captured: steps whose requests all have the same number of tokens."""
        return uniform_batches()

    def _build_decode(
        self,
        block_table_tensor: torch.Tensor,
        seq_lens_device: torch.Tensor,
        max_seq_len: int,
        query_start_loc_cpu: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> NPUMLADecodeMetadata:
        return NPUMLADecodeMetadata(
            block_table=block_table_tensor,
            seq_lens=seq_lens_device,
            dcp_tot_seq_lens=None,
            query_ends=query_start_loc_cpu[1:].tolist(),
        )

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> NPUMLAMetadata:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        assert isinstance(metadata, NPUMLAMetadata)
        metadata.dummy = serving.current().step.dummy
        if metadata.decode is not None:
            metadata.decode.context_lens = host_context_lens(common_attn_metadata, metadata.num_decodes)
        if metadata.prefill is not None:
            self._complete_prefill(metadata.prefill, common_attn_metadata, metadata.num_decodes)
        return metadata

    def _complete_prefill(self, prefill: Any, common: CommonAttentionMetadata, first: int) -> None:
        """Add to the metadata of the requests from ``first`` on, which prefill."""
        starts = common.query_start_loc_cpu[first : common.num_reqs + 1].tolist()
        query_lens = [after - before for before, after in pairwise(starts)]
        if not hasattr(prefill, "prefill_backend"):
            layer = self.compilation_config.static_forward_context[self._layer_name]
            prefill.prefill_backend = NPUMLAPrefillBackend(num_heads=layer.num_heads, scale=layer.scale)
        prefill.prefill_backend.query_lens = query_lens
        context = prefill.chunked_context
        if context is not None and not hasattr(context, "chunks"):
            lens = host_context_lens(common, common.num_reqs)[first:]
            prefill.chunked_context = chunked_context(
                [length - new for length, new in zip(lens, query_lens, strict=True)],
                list(accumulate(query_lens)),
                context.workspace,
                self.kv_cache_spec.block_size,
            )

    def build_for_drafting(self, common_attn_metadata: CommonAttentionMetadata, draft_index: int) -> NPUMLAMetadata:
        """Upstream's host lengths still count refused drafts from the second forward of a drafter on."""
        metadata = self.build(0, common_attn_metadata, fast_build=True)
        if draft_index > 0:
            metadata.correct_lengths(drafted_context_lens(common_attn_metadata, common_attn_metadata.num_reqs))
        return metadata
