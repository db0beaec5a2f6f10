# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention on ``npu_fused_infer_attention_score``, absorbed in decoding.

Upstream's layer projects, splits decodes from prefills, absorbs weights and plans chunks of context. Here is what touches
the cache: its write, decode attention over it, and attention of new tokens to context in it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch_npu
from vllm.forward_context import get_forward_context

from vllm_ascend_patch.core.latent_support import padded_heads
from vllm_ascend_patch.npu.attention.fused_attention import FusedAttention
from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE
from vllm_ascend_patch.npu.attention.operator_arguments import CAUSAL_RIGHT_DOWN, causal_mask, nd_cache_mode

from .interface import CHOOSES_KERNELS, MLACommonBackend, MLACommonImpl
from .layout import split_cache, split_rows
from .metadata import NPUMLADecodeMetadata, NPUMLAMetadata, NPUMLAMetadataBuilder


class NPUMLABackend(MLACommonBackend):
    """What vLLM asks of a backend of latent attention."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[NPUMLAImpl]:
        return NPUMLAImpl

    @staticmethod
    def get_builder_cls() -> type[NPUMLAMetadataBuilder]:
        return NPUMLAMetadataBuilder

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return [576]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [BLOCK_SIZE]


class NPUMLAImpl(MLACommonImpl[NPUMLAMetadata]):
    """One layer's latent attention."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if CHOOSES_KERNELS:
            _keep_sizes(self, **kwargs)
        else:
            super().__init__(*args, **kwargs)
        causal_mask(
            torch.device("npu", torch_npu.npu.current_device())
        )  # kept for good: memory profiling has to see it

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> None:
        """Write the real tokens' latents ``[T, 512]`` and rope parts ``[T, 1, 64]``, in a graph of a whole step those of all
        rows. Upstream's slots are -1 for a padded row, which the operator does not take."""
        metadata = _metadata()
        if kv_cache.numel() == 0 or metadata is None or metadata.num_actual_tokens == 0:
            return
        tokens = metadata.num_actual_tokens
        padded = metadata.dummy or metadata.tasks is not None
        torch_npu.npu_scatter_pa_kv_cache(
            kv_c_normed[:tokens].unsqueeze(1).contiguous(),
            k_pe[:tokens].contiguous(),
            *split_cache(kv_cache),
            metadata.padded_slots if padded else slot_mapping.flatten()[:tokens],
            **nd_cache_mode(),
        )

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: NPUMLAMetadata,
        layer: Any,
    ) -> tuple[torch.Tensor, None]:
        """Decode: absorbed queries ``[T, heads, 512]`` and ``[T, heads, 64]`` over the cache; ``[T, heads, 512]``."""
        assert isinstance(q, tuple)
        decode = attn_metadata.decode
        assert isinstance(decode, NPUMLADecodeMetadata)
        heads = q[0].shape[1]
        missing = padded_heads(heads) - heads
        query, rope = (
            torch.nn.functional.pad(part, (0, 0, 0, missing)) if missing else part.contiguous() for part in q
        )
        latents, ropes = (cache.transpose(1, 2) for cache in split_cache(kv_c_and_k_pe_cache))
        requests = len(decode.context_lens)
        single = query.shape[0] == requests
        arguments: dict[str, Any] = {
            "query_rope": rope,
            "key_rope": ropes,
            "num_heads": heads + missing,
            "num_key_value_heads": 1,
            "scale": self.scale,
            "block_table": decode.block_table,
            "block_size": latents.shape[2],
            "input_layout": "BSND",
        }
        if single:
            query, arguments["query_rope"] = query.unsqueeze(1), rope.unsqueeze(1)
        else:
            arguments |= {
                "input_layout": "TND",
                "actual_seq_lengths": decode.query_ends,
                "sparse_mode": CAUSAL_RIGHT_DOWN,
                "atten_mask": causal_mask(query.device),
            }
        if attn_metadata.tasks is None:
            out = torch_npu.npu_fused_infer_attention_score(
                query, latents, latents, actual_seq_lengths_kv=decode.context_lens, **arguments
            )[0]
        else:
            out = torch.empty_like(query)
            attn_metadata.tasks.capture_fused(
                layer.layer_name, FusedAttention(), (query, latents, latents), out, decode.context_lens, arguments
            )
        return (out.squeeze(1) if single else out)[:, :heads], None

    def forward_mha(
        self,
        q: torch.Tensor,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: NPUMLAMetadata,
        k_scale: torch.Tensor,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
    ) -> None:
        """Prefill. Partial results over context are merged as they come, so that nothing has to stand for requests without
        any."""
        prefill = attn_metadata.prefill
        assert prefill is not None
        context, backend = prefill.chunked_context, prefill.prefill_backend
        assert backend is not None
        own = backend.run_prefill_new_tokens(
            q, *self._keys_and_values(kv_c_normed, k_pe), return_softmax_lse=context is not None
        )
        if context is None:
            output.copy_(own.flatten(1))
            return
        result, sums = own
        for chunk in context.chunks:
            result, sums = self._add_chunk(chunk, q, kv_c_and_k_pe_cache, prefill, result, sums)
        output.copy_(result.flatten(1))

    def _add_chunk(
        self, chunk: Any, q: torch.Tensor, cache: torch.Tensor, prefill: Any, result: torch.Tensor, sums: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``result`` ``[T, heads, value size]`` and ``sums`` ``[heads, T]`` with attention to one more chunk of context.

        A call for each, so that the keys and values of one chunk are gone before those of the next are made: memory
        profiling counts one.
        """
        rows, tokens = chunk.token_slice, chunk.num_context_tokens
        latents, ropes = split_rows(prefill.chunked_context.workspace, tokens, (tokens, 1))
        torch_npu.npu_gather_pa_kv_cache(
            *split_cache(cache),
            prefill.block_table[chunk.request_slice].contiguous(),
            chunk.cu_seq_lens,
            latents,
            ropes,
            seq_offset=chunk.starts,
            is_seq_lens_cumsum=True,
        )
        keys, values = self._keys_and_values(latents.squeeze(1), ropes)
        part, part_sums = prefill.prefill_backend.run_prefill_context_chunk(chunk=chunk, q=q[rows], k=keys, v=values)
        merged, merged_sums = torch_npu.npu_attention_update(
            [sums[:, rows].t().flatten(), part_sums.t().flatten()],
            [result[rows].flatten(0, 1), part.flatten(0, 1)],
            1,  # with the log-sum-exp, for the next chunk
        )
        merged, merged_sums = merged.view_as(part), merged_sums.view(-1, self.num_heads).t()
        if len(part) == len(result):  # all requests have context in this chunk, as in most steps
            return merged, merged_sums
        result[rows], sums[:, rows] = merged, merged_sums
        return result, sums

    def _keys_and_values(self, latents: torch.Tensor, ropes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per head, from latents ``[rows, 512]`` and rope parts ``[rows, 1, 64]``."""
        parts = self.kv_b_proj(latents)[0].view(-1, self.num_heads, self.qk_nope_head_dim + self.v_head_dim)
        nope, values = parts.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        return self._concat_k_nope_k_pe(nope, ropes), values


def _keep_sizes(impl: NPUMLAImpl, **sizes: Any) -> None:
    """What upstream's constructor keeps, where it also demands a kernel of CUDA's."""
    impl.__dict__.update(sizes)
    impl._use_flashinfer_concat_mla_k = False


def _metadata() -> NPUMLAMetadata | None:
    """That of the running forward, one for all its layers; None in a forward without requests."""
    metadata = get_forward_context().attn_metadata
    return next(iter(metadata.values()), None) if isinstance(metadata, dict) else metadata
