# SPDX-License-Identifier: Apache-2.0
"""Families with latent attention (MLA): at sizes of the operators where it is served, and smaller where it is plain."""

from __future__ import annotations

import re
from typing import Any

from .family import SIZES, Family

_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_ROUTED = {
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 256,
}
_V2: dict[str, Any] = {**SIZES, **_LATENT, **_ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1}
V3: dict[str, Any] = {
    **SIZES,
    **_LATENT,
    **_ROUTED,
    "q_lora_rank": 48,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "num_mtp_layers": 0,
    "rope_parameters": _YARN,
}
AS_PUBLISHED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
"""Of DeepSeek-V3's configurations: vLLM goes by it, transformers does not write it."""
_FLASH: dict[str, Any] = {
    **SIZES,
    **_LATENT,
    **_ROUTED,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "q_lora_rank": 48,
    "mlp_layer_types": ["dense", "sparse"],
}
_SPARSE = {"index_topk": 64, "index_head_dim": 32, "index_n_heads": 4, "head_dim": 32}
_LONGCAT = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}

_MISTRAL = {
    r"^model\.": "",
    r"^embed_tokens": "tok_embeddings",
    r"^lm_head": "output",
    r"input_layernorm": "attention_norm",
    r"post_attention_layernorm": "ffn_norm",
    r"self_attn\.q_a_proj": "attention.wq_a",
    r"self_attn\.q_a_layernorm": "attention.q_a_norm",
    r"self_attn\.q_b_proj": "attention.wq_b",
    r"self_attn\.kv_a_proj_with_mqa": "attention.wkv_a_with_mqa",
    r"self_attn\.kv_a_layernorm": "attention.kv_a_norm",
    r"self_attn\.kv_b_proj": "attention.wkv_b",
    r"self_attn\.o_proj": "attention.wo",
    r"mlp\.gate\.weight": "gate.weight",
    r"mlp\.((?:shared_)?experts)": r"\1",
    r"mlp\.(gate|down|up)_proj": r"feed_forward.\1_proj",
    r"gate_proj": "w1",
    r"down_proj": "w2",
    r"up_proj": "w3",
}
"""Names of DeepSeek-V3's tensors, and what Mistral's own format calls them; one after the other. The bias that experts are
chosen with has no name there, so that it keeps DeepSeek's."""


def _mistral(tensors: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        renamed = name
        if not name.endswith("e_score_correction_bias"):
            for pattern, replacement in _MISTRAL.items():
                renamed = re.sub(pattern, replacement, renamed)
        found[renamed] = tensor
    return found


def _norm_of_dense_layers(tensors: dict[str, Any]) -> dict[str, Any]:
    """With the norm after the MLP that vLLM's class of A.X-K1 loads for dense layers, too, and uses with experts alone."""
    import torch

    like = tensors["model.layers.1.post_mlp_layernorm.weight"]
    return tensors | {"model.layers.0.post_mlp_layernorm.weight": torch.ones_like(like)}


FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(
        architectures=("DeepseekV2ForCausalLM",),
        config="DeepseekV2Config",
        values={
            **_V2,
            "q_lora_rank": 48,
            "n_group": 2,
            "topk_group": 1,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 2.0,
        },
        feature="latent attention, groups by their best expert",
    ),
    "deepseek_v3": Family(
        architectures=("DeepseekV3ForCausalLM",),
        config="DeepseekV3Config",
        values=V3,
        edits=AS_PUBLISHED,
        feature="DeepSeek-V3, R1, Kimi-K2: latent attention, sigmoid scores with a bias in groups, yarn",
        layouts=("1 NPU", "TP 2 + EP", "DP 2 + EP"),
    ),
    "deepseek_v3_plain": Family(
        architectures=("DeepseekV3ForCausalLM",),
        config="DeepseekV3Config",
        values=V3,
        edits=AS_PUBLISHED,
        environment={"VLLM_MLA_DISABLE": "1"},
        feature="the same with plain attention (VLLM_MLA_DISABLE=1)",
        layouts=("1 NPU",),
    ),
    "glm4_moe_lite": Family(
        architectures=("Glm4MoeLiteForCausalLM",),
        config="Glm4MoeLiteConfig",
        values={**_FLASH, "routed_scaling_factor": 1.8},
        edits={"first_k_dense_replace": 1},
        dtype="bfloat16",
        feature="GLM-4.7-Flash: latent attention with 256/256",
    ),
    "deepseek_v32": Family(
        architectures=("DeepseekV32ForCausalLM",),
        config="DeepseekV32Config",
        values={**V3, **_SPARSE, "rope_parameters": None},
        feature="sparse latent attention",
        layouts=("1 NPU",),
    ),
    "glm_moe_dsa": Family(
        architectures=("GlmMoeDsaForCausalLM",),
        config="GlmMoeDsaConfig",
        values={**V3, **_SPARSE, "rope_parameters": None},
        feature="GLM-5: sparse latent attention",
        layouts=("1 NPU",),
    ),
    "kimi_linear": Family(
        architectures=("KimiLinearForCausalLM",),
        config="KimiLinearConfig",
        values={
            **SIZES,
            **_LATENT,
            "num_hidden_layers": 4,
            "q_lora_rank": None,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_local_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "linear_head_dim": 32,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
        feature="linear attention (KDA) beside latent attention",
        layouts=("1 NPU",),
    ),
    "longcat_flash": Family(
        architectures=("LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM"),
        config="LongcatFlashConfig",
        values={
            **_LONGCAT,
            **_LATENT,
            "num_layers": 2,
            "ffn_hidden_size": 64,
            "q_lora_rank": 48,
            "head_dim": 64,
            "moe_topk": 4,
            "n_routed_experts": 8,
            "zero_expert_num": 4,
            "expert_ffn_hidden_size": 32,
        },
        feature="two latent attentions in a layer, experts without weights",
        layouts=("1 NPU",),
    ),
    "hy_v4": Family(
        architectures=("HYV4ForCausalLM",),
        config="HYV4Config",
        values={**SIZES, **_LATENT, **_ROUTED, **_SPARSE, "q_lora_rank": 48, "head_dim": 192},
        feature="sparse latent attention, hyper-connections",
        layouts=("1 NPU",),
    ),
    "axk1": Family(
        architectures=("AXK1ForCausalLM",),
        config="AXK1Config",
        values={key: value for key, value in V3.items() if key not in ("num_mtp_layers", "rope_parameters")},
        dtype="bfloat16",
        rename=_norm_of_dense_layers,
        feature="latent attention, a norm after the experts",
    ),
    "axk1_float16": Family(
        architectures=("AXK1ForCausalLM",),
        config="AXK1Config",
        values={key: value for key, value in V3.items() if key not in ("num_mtp_layers", "rope_parameters")},
        rename=_norm_of_dense_layers,
        feature="the same in float16",
        layouts=("1 NPU",),
    ),
    "mistral_large_3": Family(
        architectures=("MistralLarge3ForCausalLM",),
        config="DeepseekV3Config",
        values=V3,
        edits=AS_PUBLISHED,
        rename=_mistral,
        feature="Mistral Large 3: DeepSeek-V3's layers under names of its own",
    ),
}
