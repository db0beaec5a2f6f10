# SPDX-License-Identifier: Apache-2.0
"""Families some of whose layers keep a state in place of keys and values."""

from __future__ import annotations

from typing import Any

from .family import SIZES, Family

_FOUR = {**SIZES, "num_hidden_layers": 4}
LINEAR: dict[str, Any] = {
    **_FOUR,
    "head_dim": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

FAMILIES: dict[str, Family] = {
    "qwen3_next": Family(
        architectures=("Qwen3NextForCausalLM",),
        config="Qwen3NextConfig",
        values={**LINEAR, "intermediate_size": 64},
        feature="gated DeltaNet in three of four layers, as published",
        layouts=("1 NPU", "TP 2 + EP", "DP 2 + EP"),
    ),
    "qwen3_5_moe_text": Family(
        architectures=("Qwen3_5MoeForCausalLM",),
        config="Qwen3_5MoeTextConfig",
        values=LINEAR,
        feature="gated DeltaNet in three of four layers",
    ),
    "granitemoehybrid": Family(
        architectures=("GraniteMoeHybridForCausalLM",),
        config="GraniteMoeHybridConfig",
        values={
            **SIZES,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
            "shared_intermediate_size": 32,
            "mamba_n_heads": 8,
            "mamba_d_state": 16,
            "mamba_d_head": 16,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "layer_types": ["mamba", "attention", "mamba"],
            "position_embedding_type": "nope",
            "attention_multiplier": 0.25,
        },
        feature="Granite 4: Mamba 2 in two of three layers",
        layouts=("1 NPU",),
    ),
    "nemotron_h": Family(
        architectures=("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"),
        config="NemotronHConfig",
        values={
            **{key: value for key, value in SIZES.items() if key != "num_hidden_layers"},
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 32,
            "use_mamba_kernels": False,
        },
        dtype="bfloat16",
        feature="Nemotron 3: Mamba 2, attention and MoE layers",
        layouts=("1 NPU",),
    ),
    "jamba": Family(
        architectures=("JambaForCausalLM",),
        config="JambaConfig",
        values={
            **_FOUR,
            "intermediate_size": 64,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 16,
            "mamba_dt_rank": 8,
        },
        feature="Mamba in every other layer",
        layouts=("1 NPU",),
    ),
    "lfm2_moe": Family(
        architectures=("Lfm2MoeForCausalLM",),
        config="Lfm2MoeConfig",
        values={
            **_FOUR,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
        feature="short convolutions in every other layer",
        layouts=("1 NPU",),
    ),
}
