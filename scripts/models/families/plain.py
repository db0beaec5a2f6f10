# SPDX-License-Identifier: Apache-2.0
"""Families whose layers all attend to all tokens, with keys and values of one size."""

from __future__ import annotations

from typing import Any

from .family import SIZES, Family

_EIGHT = {"num_experts": 8, "num_experts_per_tok": 4}
_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 4}
_ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 4, "n_shared_experts": 1}
_GRANITE = {
    **SIZES,
    **_LOCAL,
    "tie_word_embeddings": True,
    "intermediate_size": 32,
    "embedding_multiplier": 2.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.1,
}
_GLM4: dict[str, Any] = {
    **SIZES,
    **_ROUTED,
    "head_dim": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "attention_bias": True,
    "num_mtp_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
}


def _bailing(tensors: dict[str, Any]) -> dict[str, Any]:
    """Glm4Moe's, or Qwen3Moe's, tensors under the names of Ling, which has queries, keys and values in one."""
    import torch

    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        name = name.replace("model.embed_tokens", "model.word_embeddings").replace("self_attn", "attention")
        name = name.replace("attention.o_proj", "attention.dense").replace(
            "attention.q_norm", "attention.query_layernorm"
        )
        name = name.replace("attention.k_norm", "attention.key_layernorm")
        found[name.replace("e_score_correction_bias", "expert_bias")] = tensor
    for name in [name for name in found if name.endswith("attention.q_proj.weight")]:
        parts = [found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[name.replace("q_proj", "query_key_value")] = torch.cat(parts)
    return found


def _deepseek(tensors: dict[str, Any]) -> dict[str, Any]:
    """GraniteMoeShared's tensors under the names of DeepSeek-MoE, which has a tensor for each expert."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        head, _, tail = name.partition(".block_sparse_moe.")
        if tail == "router.layer.weight":
            found[f"{head}.mlp.gate.weight"] = tensor
        elif tail == "output_linear.weight":
            found |= {f"{head}.mlp.experts.{n}.down_proj.weight": part.clone() for n, part in enumerate(tensor)}
        elif tail == "input_linear.weight":
            for number, part in enumerate(tensor):
                gate, up = part.chunk(2)
                found[f"{head}.mlp.experts.{number}.gate_proj.weight"] = gate.clone()
                found[f"{head}.mlp.experts.{number}.up_proj.weight"] = up.clone()
        elif name.endswith("shared_mlp.input_linear.weight"):
            for kind, part in zip(("gate", "up"), tensor.chunk(2), strict=True):
                found[name.replace("shared_mlp.input_linear", f"mlp.shared_experts.{kind}_proj")] = part.clone()
        else:
            found[name.replace("shared_mlp.output_linear", "mlp.shared_experts.down_proj")] = tensor
    return found


def _zero_output_bias(tensors: dict[str, Any]) -> dict[str, Any]:
    """With a bias of the output projection, which vLLM's class wants whatever the configuration says."""
    import torch

    return tensors | {"lm_head.bias": torch.zeros(SIZES["vocab_size"], dtype=tensors["lm_head.weight"].dtype)}


# Ling's classes, under the names of Indian models that took them over.
_LING: dict[str, Any] = {
    "embedding_dropout": 0.0,
    "use_rmsnorm": True,
    "num_experts": 8,
    "num_shared_experts": 1,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "partial_rotary_factor": 1.0,  # beside the rotary parameters Glm4Moe's configuration writes its own default, a half
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
}
_LING_VALUES: dict[str, Any] = {
    **_GLM4,
    "routed_scaling_factor": 2.5,
    "n_group": 4,
    "topk_group": 2,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
}

FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        architectures=("MixtralForCausalLM",),
        config="MixtralConfig",
        values={**SIZES, "head_dim": 32, "intermediate_size": 64, "num_local_experts": 8, "sliding_window": None},
        feature="softmax over the best 2 of 8",
    ),
    "qwen2_moe": Family(
        architectures=("Qwen2MoeForCausalLM",),
        config="Qwen2MoeConfig",
        values={
            **SIZES,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
        },
        feature="biases of queries, keys and values, a gated shared expert, a dense layer",
    ),
    "qwen3_moe": Family(
        architectures=("Qwen3MoeForCausalLM",),
        config="Qwen3MoeConfig",
        values={
            **SIZES,
            **_EIGHT,
            "head_dim": 128,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        feature="norms of queries and keys, head size 128, renormalised weights",
        layouts=("1 NPU", "TP 2 + EP", "DP 2 + EP"),
    ),
    "glm4_moe": Family(
        architectures=("Glm4MoeForCausalLM",),
        config="Glm4MoeConfig",
        values={**_GLM4, "routed_scaling_factor": 1.5},
        dtype="bfloat16",
        feature="GLM-4.5, 4.6: sigmoid scores with a bias and a factor, a shared expert, half rotary",
    ),
    "glm4_moe_float16": Family(
        architectures=("Glm4MoeForCausalLM",),
        config="Glm4MoeConfig",
        values={**_GLM4, "routed_scaling_factor": 1.5},
        feature="the same in float16",
        layouts=("1 NPU",),
    ),
    "minimax_m2": Family(
        architectures=("MiniMaxM2ForCausalLM",),
        config="MiniMaxM2Config",
        values={
            **SIZES,
            **_LOCAL,
            "head_dim": 32,
            "intermediate_size": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        },
        edits={"rotary_dim": 16, "scoring_func": "sigmoid", "use_routing_bias": True},
        feature="norms over all heads, sigmoid scores with a bias, half rotary",
    ),
    "ernie4_5_moe": Family(
        architectures=("Ernie4_5_MoeForCausalLM",),
        config="Ernie4_5_MoeConfig",
        values={
            **SIZES,
            "tie_word_embeddings": True,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "moe_k": 4,
            "moe_num_experts": 8,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
            "use_bias": False,
        },
        feature="softmax scores with a bias, interleaved rotary, shared experts",
    ),
    "hunyuan_v1_moe": Family(
        architectures=("HunYuanMoEV1ForCausalLM",),
        config="HunYuanMoEV1Config",
        values={**SIZES, "head_dim": 32, "intermediate_size": 64, "num_experts": 8, "moe_topk": 2},
        feature="Hunyuan-A13B, through vLLM's Transformers backend",
    ),
    "hy_v3": Family(
        architectures=("HYV3ForCausalLM",),
        config="HYV3Config",
        values={
            **SIZES,
            **_EIGHT,
            "head_dim": 32,
            "intermediate_size": 64,
            "num_shared_experts": 1,
            "moe_intermediate_size": 32,
            "mlp_layer_types": ["dense", "sparse"],
        },
        edits={"first_k_dense_replace": 1, "expert_hidden_dim": 32, "route_norm": True, "qk_norm": True},
        feature="Hunyuan 3: sigmoid scores with a bias and a factor, a shared expert",
    ),
    "bailing_v2": Family(
        architectures=("BailingMoeV2ForCausalLM",),
        config="Glm4MoeConfig",
        values={
            **_GLM4,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 2.5,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 6e5, "partial_rotary_factor": 0.5},
        },
        edits={
            "model_type": "bailing_moe_v2",
            "embedding_dropout": 0.0,
            "use_rmsnorm": True,
            "num_experts": 8,
            "num_shared_experts": 1,
            "use_qkv_bias": False,
            "use_bias": False,
            "score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "partial_rotary_factor": 0.5,
            "rope_theta": 6e5,
            "hidden_act": "silu",
        },
        own_configuration=True,
        rename=_bailing,
        feature="Ling 2.0: sigmoid scores with a bias in groups, one tensor for queries, keys and values",
    ),
    "bailing_v1": Family(
        architectures=("BailingMoeForCausalLM",),
        config="Qwen3MoeConfig",
        values={
            **SIZES,
            **_EIGHT,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        edits={
            "model_type": "bailing_moe",
            "num_experts": 8,
            "embedding_dropout": 0.0,
            "use_rmsnorm": True,
            "num_shared_experts": 0,
            "use_qk_norm": True,
            "use_qkv_bias": False,
            "use_bias": False,
            "first_k_dense_replace": 0,
            "score_function": "softmax",
            "hidden_act": "silu",
            "rope_theta": 10000.0,
        },
        own_configuration=True,
        rename=_bailing,
        feature="Ling 1, without shared experts",
    ),
    "sarvam_moe": Family(
        architectures=("SarvamMoEForCausalLM",),
        config="Glm4MoeConfig",
        values=_LING_VALUES,
        edits={"model_type": "sarvam_moe", **_LING},
        own_configuration=True,
        rename=_bailing,
        feature="sigmoid scores with a bias in groups",
    ),
    "param2moe": Family(
        architectures=("Param2MoEForCausalLM",),
        config="Glm4MoeConfig",
        values=_LING_VALUES,
        edits={"model_type": "param2moe", **_LING},
        own_configuration=True,
        rename=_bailing,
        feature="sigmoid scores with a bias in groups",
    ),
    "deepseek_v1": Family(
        architectures=("DeepseekForCausalLM",),
        config="GraniteMoeSharedConfig",
        values={
            **SIZES,
            **_LOCAL,
            "intermediate_size": 32,
            "shared_intermediate_size": 32,
            "attention_multiplier": 0.25,  # of a head size of 16: the usual one
        },
        edits={
            "model_type": "deepseek",
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
            "norm_topk_prob": True,
            "scoring_func": "softmax",
            "topk_method": "greedy",
        },
        own_configuration=True,
        rename=_deepseek,
        feature="DeepSeek-MoE: softmax scores, shared experts, with renormalised weights",
    ),
    "dots1": Family(
        architectures=("Dots1ForCausalLM",),
        config="Dots1Config",
        values={
            **SIZES,
            **_ROUTED,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
        },
        feature="sigmoid scores in groups, through vLLM's Transformers backend",
    ),
    "solar_open": Family(
        architectures=("SolarOpenForCausalLM",),
        config="SolarOpenConfig",
        values={
            **SIZES,
            **_ROUTED,
            "head_dim": 32,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        },
        feature="through vLLM's Transformers backend",
    ),
    "olmoe": Family(
        architectures=("OlmoeForCausalLM",),
        config="OlmoeConfig",
        values={
            **SIZES,
            **_EIGHT,
            "num_key_value_heads": 4,
            "intermediate_size": 32,
            "norm_topk_prob": False,
            "clip_qkv": None,
        },
        feature="norms over all heads",
    ),
    "olmoe_clip": Family(
        architectures=("OlmoeForCausalLM",),
        config="OlmoeConfig",
        values={
            **SIZES,
            **_EIGHT,
            "num_key_value_heads": 4,
            "intermediate_size": 32,
            "norm_topk_prob": False,
            "clip_qkv": 2.0,
        },
        feature="with clip_qkv",
        layouts=("1 NPU",),
    ),
    "flex_olmo": Family(
        architectures=("FlexOlmoForCausalLM",),
        config="FlexOlmoConfig",
        values={**SIZES, **_EIGHT, "num_key_value_heads": 4, "intermediate_size": 32, "norm_topk_prob": False},
        feature="norms after layers, through vLLM's Transformers backend",
    ),
    "granitemoe": Family(
        architectures=("GraniteMoeForCausalLM",),
        config="GraniteMoeConfig",
        values=_GRANITE,
        feature="multipliers, fused weights of experts",
    ),
    "granitemoeshared": Family(
        architectures=("GraniteMoeSharedForCausalLM",),
        config="GraniteMoeSharedConfig",
        values={**_GRANITE, "shared_intermediate_size": 32},
        feature="the same with a shared MLP",
    ),
    "granitemoehybrid_attention": Family(
        architectures=("GraniteMoeHybridForCausalLM",),
        config="GraniteMoeHybridConfig",
        values={
            **_GRANITE,
            "shared_intermediate_size": 32,
            "attention_multiplier": 0.25,
            "layer_types": ["attention", "attention"],
            "position_embedding_type": "nope",
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
        },
        feature="attention layers alone, without rotary embedding",
    ),
    "phimoe": Family(
        architectures=("PhiMoEForCausalLM",),
        config="PhimoeConfig",
        values={
            **SIZES,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": False,
            "sliding_window": 1024,
        },
        rename=_zero_output_bias,
        feature="SparseMixer routing, a window that never binds; a bias of the output projection that is zero",
    ),
    "phimoe_bias": Family(
        architectures=("PhiMoEForCausalLM",),
        config="PhimoeConfig",
        values={
            **SIZES,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": True,
            "sliding_window": 1024,
        },
        feature="as Phi-3.5-MoE is published, with that bias",
    ),
    "dbrx": Family(
        architectures=("DbrxForCausalLM",),
        config="DbrxConfig",
        values={
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 1024,
            "vocab_size": 512,
            "attn_config": {"clip_qkv": 2.0, "kv_n_heads": 2, "rope_theta": 10000.0},
            "ffn_config": {
                "hidden_size": 64,
                "ffn_hidden_size": 32,
                "moe_num_experts": 8,
                "moe_top_k": 2,
                "ffn_act_fn": {"name": "silu"},
            },
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        feature="one tensor for queries, keys and values, clipped; fused weights of experts",
    ),
    "jetmoe": Family(
        architectures=("JetMoeForCausalLM",),
        config="JetMoeConfig",
        values={
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "kv_channels": 32,
            "intermediate_size": 64,
            "max_position_embeddings": 1024,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        feature="experts in attention, through vLLM's Transformers backend",
        layouts=("1 NPU",),
    ),
    "nemotron_h_attention": Family(
        architectures=("NemotronHForCausalLM",),
        config="NemotronHConfig",
        values={
            **{key: value for key, value in SIZES.items() if key != "num_hidden_layers"},
            **_ROUTED,
            "routed_scaling_factor": 1.0,
            "layers_block_type": ["attention", "moe", "attention", "moe"],
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 32,
            "use_mamba_kernels": False,
        },
        feature="attention and MoE layers alone: squared ReLU without a gate",
    ),
    "qwen3_next_attention": Family(
        architectures=("Qwen3NextForCausalLM",),
        config="Qwen3NextConfig",
        values={
            **SIZES,
            **_EIGHT,
            "head_dim": 64,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["full_attention", "full_attention"],
        },
        feature="attention layers alone: gated attention, quarter rotary, a gated shared expert",
    ),
}
