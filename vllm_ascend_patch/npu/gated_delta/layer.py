# SPDX-License-Identifier: Apache-2.0
"""vLLM's layer of gated DeltaNet, with convolution and delta rule in torch in place of Triton's and CUDA's kernels.

Projections, norm and cache are upstream's. Correct first: each longer request of a step is computed by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor import custom_op
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first

from vllm_ascend_patch.core.kernels import gated_delta

from .metadata import NPUStateBackend, NPUStateMetadata, Piece


class NPUGatedDeltaNetAttention(QwenGatedDeltaNetAttention):
    """What upstream's custom operator calls, and the backend that tells it of a step."""

    def get_attn_backend(self) -> type[Any]:
        return NPUStateBackend

    def _forward_core(
        self, mixed_qkv: torch.Tensor, b: torch.Tensor, a: torch.Tensor, core_attn_out: torch.Tensor
    ) -> None:
        """Write ``[T, value heads, value size]`` into ``core_attn_out``, which is zero, from ``[T, channels]`` before the
        convolution and gates ``[T, value heads]``. Without metadata (profiling, an idle rank's step) it stays zero."""
        metadata = get_forward_context().attn_metadata
        if isinstance(metadata, dict):
            metadata = metadata.get(self.prefix)
        if metadata is None:
            return
        assert isinstance(metadata, NPUStateMetadata)
        for piece in metadata.pieces:
            rows = piece.rows
            core_attn_out[rows] = self._compute(mixed_qkv[rows], b[rows], a[rows], metadata, piece)

    def _compute(
        self, x: torch.Tensor, b: torch.Tensor, a: torch.Tensor, metadata: NPUStateMetadata, piece: Piece
    ) -> torch.Tensor:
        blocks, begun = metadata.blocks[piece.requests], metadata.begun[piece.requests].view(-1, 1, 1)
        conv_states, states = self.kv_cache
        if is_conv_state_dim_first():
            conv_states = conv_states.transpose(-1, -2)
        requests = len(blocks)
        x, b, a = (rows.reshape(requests, -1, rows.shape[-1]) for rows in (x, b, a))
        before = conv_states[blocks]
        mixed, after = gated_delta.causal_convolution(
            x, torch.where(begun, before, torch.zeros_like(before)), self.conv1d.weight.squeeze(1)
        )
        conv_states[blocks] = after.to(conv_states.dtype)
        keys, values = self.key_dim // self.tp_size, self.value_dim // self.tp_size
        query, key, value = mixed.split([keys, keys, values], dim=-1)
        decay, beta = gated_delta.gates(a, b, self.A_log, self.dt_bias)
        state = states[blocks].float()
        out, state = gated_delta.delta_rule(
            query.unflatten(-1, (-1, self.head_k_dim)),
            key.unflatten(-1, (-1, self.head_k_dim)),
            value.unflatten(-1, (-1, self.head_v_dim)),
            decay,
            beta,
            torch.where(begun.unsqueeze(-1), state, torch.zeros_like(state)),
        )
        states[blocks] = state.to(states.dtype)
        return out.flatten(0, 1)


def register() -> None:
    """Let vLLM make this class wherever it would make its own; once per process, before a model is made."""
    name = QwenGatedDeltaNetAttention.__name__
    if name not in custom_op.op_registry_oot:
        custom_op.PluggableLayer.register_oot(NPUGatedDeltaNetAttention, name=name)
