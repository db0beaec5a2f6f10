# SPDX-License-Identifier: Apache-2.0
"""Adds to upstream's MLA metadata what the operator takes from the host: lengths of the decode requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonDecodeMetadata,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    QueryLenSupport,
)

from vllm_ascend_patch.npu.attention.interface import CommonAttentionMetadata
from vllm_ascend_patch.npu.attention.metadata import host_context_lens


@dataclass
class NPUMLADecodeMetadata(MLACommonDecodeMetadata):
    """``query_ends``: cumulative query lengths of the decode requests; ``context_lens``: their key lengths."""

    query_ends: list[int] = field(default_factory=list)
    context_lens: list[int] = field(default_factory=list)


class NPUMLAMetadataBuilder(MLACommonMetadataBuilder[MLACommonMetadata]):
    """Upstream's; requests whose drafts are verified decode, too, as long as all have the same number of them."""

    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.UNIFORM

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
    ) -> MLACommonMetadata:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if metadata.decode is not None:
            metadata.decode.context_lens = host_context_lens(common_attn_metadata, metadata.num_decodes)
        return metadata

    def build_for_drafting(self, common_attn_metadata: CommonAttentionMetadata, draft_index: int) -> MLACommonMetadata:
        """Upstream's host lengths still count refused drafts from the second forward of a drafter on."""
        metadata = self.build(0, common_attn_metadata, fast_build=True)
        if draft_index > 0 and metadata.decode is not None:
            metadata.decode.context_lens = common_attn_metadata.seq_lens[: metadata.num_decodes].tolist()
        return metadata
