# SPDX-License-Identifier: Apache-2.0
"""Paged causal attention on ``npu_scatter_pa_kv_cache`` and ``npu_fused_infer_attention_score``.

Where the operator takes a layer's heads in the TND layout (``forms.py``), a step is one call per layer. Otherwise it goes
through BSND: one call for all single-token requests and one for each longer request, because BSND would pad every request to
the longest. Sliding windows and sinks are TND's alone.
Steps whose requests all have the same number of tokens can be captured whole (``graph_tasks.py``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch_npu

from vllm_ascend_patch.core.operator_limits import MAX_TND_REQUESTS

from .forms import form_of, layout_of
from .fused_attention import FusedAttention
from .graph_tasks import GraphTasks
from .interface import AttentionBackend, AttentionImpl, AttentionType
from .layout import BLOCK_SIZE, QueryLayout, check_head_size, split_pages
from .metadata import NPUAttentionMetadata, NPUAttentionMetadataBuilder
from .operator_arguments import causal_mask, nd_cache_mode, visible_keys


class NPUAttentionBackend(AttentionBackend):
    """What vLLM asks of an attention backend."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16"]
    accept_output_buffer: bool = True

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[NPUAttentionImpl]:
        return NPUAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[NPUAttentionMetadataBuilder]:
        return NPUAttentionMetadataBuilder

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, *_: Any, **__: Any
    ) -> tuple[int, ...]:
        """Asked for where the backend owns the shape: one contiguous page per block, as ``split_pages`` takes it."""
        return (num_blocks, num_kv_heads, block_size, 2 * head_size)

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [BLOCK_SIZE]


class NPUAttentionImpl(AttentionImpl):
    """One attention layer: writes the step's keys and values, then attends over the pages."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **unsupported: Any,
    ) -> None:
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.shares_kv = kv_sharing_target_layer_name is not None
        _refuse(
            {
                "ALiBi": alibi_slopes,
                "logits soft-capping": logits_soft_cap,
                **{name: value for name, value in unsupported.items()},
            }
        )
        if attn_type != AttentionType.DECODER:
            raise NotImplementedError(f"attention type {attn_type} is not supported on Ascend NPUs by this port")
        check_head_size(head_size, num_heads, self.num_kv_heads)
        self.window = sliding_window
        self.operator = FusedAttention(sinks)
        self.layout = layout_of(
            form_of(num_heads, self.num_kv_heads, head_size, window=sliding_window is not None, sinks=sinks is not None)
        )

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: NPUAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend for the step's tokens; ``query`` ``[T, heads, head size]``, ``key``/``value`` ``[T, kv heads, head size]``.

        Rows of ``output`` past the step's real tokens are zeroed, so that padding never carries old memory into the MoE
        layers. Without metadata (profiling, an idle rank's dummy step) the whole output is zero.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("fused output quantisation is not supported on Ascend NPUs by this port")
        if attn_metadata is None:
            causal_mask(query.device)  # kept for good: memory profiling has to see it
            return output.zero_()
        if attn_metadata.tasks is not None:
            return self._capture(layer, query, key, value, kv_cache, attn_metadata, attn_metadata.tasks, output)
        tokens = attn_metadata.num_tokens
        key_cache, value_cache = split_pages(kv_cache)
        if not self.shares_kv and key is not None:
            torch_npu.npu_scatter_pa_kv_cache(
                key[:tokens].contiguous(),
                value[:tokens].contiguous(),
                key_cache,
                value_cache,
                attn_metadata.slots,
                **nd_cache_mode(),
            )
        # Without rotary embedding or norm the query is still a slice of the fused projection, like keys and values.
        query = query[:tokens].view(tokens, self.num_heads, self.head_size).contiguous()
        out = output[:tokens].view(tokens, self.num_heads, self.head_size)
        pages = tuple(cache.view(cache.shape[0], cache.shape[1], -1) for cache in (key_cache, value_cache))
        if self.layout is QueryLayout.TND and len(attn_metadata.query_ends) <= MAX_TND_REQUESTS:
            out.copy_(self._attend_tnd(query, pages, attn_metadata))
        else:
            self._attend_bsnd(query, pages, attn_metadata, out)
        if tokens < output.shape[0]:
            output[tokens:].zero_()
        return output

    def _capture(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        meta: NPUAttentionMetadata,
        tasks: GraphTasks,
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Record the layer's step for all rows of a graph.

        All requests have the same number of query tokens. A request of key length 0 gets zeros, and its rows' keys and
        values go to the null block, so padding neither reads nor reaches what is another request's.
        """
        key_cache, value_cache = split_pages(kv_cache)
        if not self.shares_kv and key is not None:
            torch_npu.npu_scatter_pa_kv_cache(
                key.contiguous(), value.contiguous(), key_cache, value_cache, meta.slots, **nd_cache_mode()
            )
        requests = len(meta.context_lens)
        tokens = query.shape[0] // requests
        form: dict[str, Any] = {}
        if self.layout is QueryLayout.TND:
            shape: tuple[int, ...] = (query.shape[0], self.num_heads, self.head_size)
            form["actual_seq_lengths"] = [tokens * (request + 1) for request in range(requests)]
        else:
            shape = (requests, tokens, self.num_heads, self.head_size)
        if tokens > 1 or self.layout is QueryLayout.TND:
            form |= visible_keys(self.window, query.device)
        keys, values = (cache.view(cache.shape[0], cache.shape[1], -1) for cache in (key_cache, value_cache))
        query = query.contiguous().view(shape)
        arguments: dict[str, Any] = {
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "scale": self.scale,
            "input_layout": self.layout.value,
            "block_table": meta.page_table,
            "block_size": keys.shape[1],
            **form,
        }
        inputs = (query, keys, values)
        tasks.capture_fused(layer.layer_name, self.operator, inputs, output.view(shape), meta.context_lens, arguments)
        return output

    def _attend_tnd(
        self, query: torch.Tensor, pages: tuple[torch.Tensor, ...], meta: NPUAttentionMetadata
    ) -> torch.Tensor:
        return self._operator(
            query,
            pages,
            "TND",
            meta.page_table,
            meta.context_lens,
            query_ends=meta.query_ends,
            **visible_keys(self.window, query.device),
        )

    def _attend_bsnd(
        self,
        query: torch.Tensor,
        pages: tuple[torch.Tensor, ...],
        meta: NPUAttentionMetadata,
        out: torch.Tensor,
    ) -> None:
        """Fill ``out``: single-token requests in one call, each longer request in one of its own."""
        decodes = meta.num_decodes
        if decodes:
            out[:decodes] = self._operator(
                query[:decodes].unsqueeze(1), pages, "BSND", meta.page_table[:decodes], meta.context_lens[:decodes]
            ).squeeze(1)
        start = decodes
        for request in range(decodes, len(meta.query_ends)):
            end = meta.query_ends[request]
            if end > start:
                out[start:end] = self._operator(
                    query[start:end].unsqueeze(0),
                    pages,
                    "BSND",
                    meta.page_table[request : request + 1],
                    meta.context_lens[request : request + 1],
                    **visible_keys(None, query.device),
                ).squeeze(0)
            start = end

    def _operator(
        self,
        query: torch.Tensor,
        pages: tuple[torch.Tensor, ...],
        layout: str,
        block_table: torch.Tensor,
        context_lens: list[int],
        query_ends: list[int] | None = None,
        **mask: Any,
    ) -> torch.Tensor:
        return self.operator.attend(
            query,
            *pages,
            num_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            scale=self.scale,
            input_layout=layout,
            actual_seq_lengths=query_ends,
            actual_seq_lengths_kv=context_lens,
            block_table=block_table,
            block_size=pages[0].shape[1],
            **mask,
        )


def _refuse(features: dict[str, Any]) -> None:
    for name, value in features.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"attention with {name} is not supported on Ascend NPUs by this port")
