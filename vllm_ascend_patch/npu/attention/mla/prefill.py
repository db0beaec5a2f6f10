# SPDX-License-Identifier: Apache-2.0
"""Prefill of latent attention: dense keys and values per head, in one operator call each for new tokens and for a chunk of
context. vLLM asks the platform for this class, or is made to; before 0.21 the metadata's builder makes it."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch_npu

from vllm_ascend_patch.npu.attention.operator_arguments import CAUSAL_RIGHT_DOWN, causal_mask

from .interface import MLAPrefillBackend


class NPUMLAPrefillBackend(MLAPrefillBackend):
    """``npu_fused_infer_attention_score`` in layout TND; head sizes as in ``core/latent_support.py``.

    ``query_lens``: new tokens of each request of the step that prefills, set by the metadata's builder.
    """

    query_lens: list[int]

    @staticmethod
    def get_name() -> str:
        return "ASCEND_NPU"

    def run_prefill_new_tokens(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        return_softmax_lse: bool,
        out: torch.Tensor | None = None,
        output_scale: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The step's new tokens among themselves, causal. Shapes as in ``_attend``; the sums only if asked for."""
        if output_scale is not None:
            raise NotImplementedError("fused output quantisation is not supported on Ascend NPUs by this port")
        ends = list(accumulate(self.query_lens))
        mask = {"sparse_mode": CAUSAL_RIGHT_DOWN, "atten_mask": causal_mask(q.device)}
        result, sums = self._attend(q, k, v, ends, ends, return_softmax_lse, **mask)
        return (result, sums) if return_softmax_lse else result

    def run_prefill_context_chunk(
        self, chunk: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens of the chunk's requests against context that all of them see."""
        query_ends = list(accumulate(self.query_lens[chunk.request_slice]))
        return self._attend(q, k, v, query_ends, list(accumulate(chunk.seq_lens.tolist())), True)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        query_ends: list[int],
        key_ends: list[int],
        sums: bool,
        **mask: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[T, heads, value size]`` and the log-sum-exp ``[heads, T]``, a view of ``[T, heads]``."""
        out, lse = torch_npu.npu_fused_infer_attention_score(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            num_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            scale=self.scale,
            input_layout="TND",
            actual_seq_lengths=query_ends,
            actual_seq_lengths_kv=key_ends,
            softmax_lse_flag=sums,
            **mask,
        )
        return out, lse.squeeze(-1).t() if sums else lse
