# SPDX-License-Identifier: Apache-2.0
"""Architectures that transformers does not have: configurations as the hub has them, weights that vLLM draws.

Their tokens have nothing to be compared with. What counts is that they are refused, or start and answer.
"""

from __future__ import annotations

from typing import Any

from .family import SIZES, Family

_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
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
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "rope_theta": 10000.0,
}


def _bare(*architectures: str, model_type: str, feature: str, **values: Any) -> Family:
    return Family(
        architectures=architectures,
        config="",
        values={**SIZES, **_ROUTED, "model_type": model_type, **values},
        feature=feature,
        dtype="bfloat16",
        own_configuration=True,
        layouts=("1 NPU",),
    )


FAMILIES: dict[str, Family] = {
    "sarvam_mla": _bare(
        "SarvamMLAForCausalLM",
        model_type="sarvam_mla",
        feature="latent attention",
        **_LATENT,
        num_experts=8,
        num_shared_experts=1,
        n_group=1,
        topk_group=1,
        score_function="sigmoid",
    ),
    "step3_text": _bare(
        "Step3TextForCausalLM",
        model_type="step3_text",
        feature="multi-matrix attention",
        num_attention_groups=1,
        head_dim=32,
        share_q_dim=64,
        moe_num_experts=8,
        moe_top_k=2,
        moe_layers_enum="1",
        share_expert_dim=32,
        norm_expert_weight=True,
        max_position_embedding=1024,
    ),
    "pangu_ultra": _bare(
        "PanguUltraMoEForCausalLM",
        model_type="pangu_ultra_moe",
        feature="openPangu Ultra: latent attention, sandwich norms",
        **_LATENT,
        sandwich_norm=True,
    ),
    "pangu_pro_v2": _bare(
        "PanguProMoEV2ForCausalLM",
        model_type="pangu_pro_moe_v2",
        feature="openPangu Pro V2: static sinks, values of another head size",
        head_dim=64,
        v_channels=64,
        param_sink_number=4,
    ),
    "bailing_v2_5": _bare(
        "BailingMoeV2_5ForCausalLM",
        model_type="bailing_moe_v2_5",
        feature="Ling 2.5: lightning and latent attention",
        **_LATENT,
        num_experts=8,
        num_shared_experts=1,
        layer_group_size=2,
        score_function="sigmoid",
    ),
    "minicpm_moe": _bare(
        "MiniCPMForCausalLM",
        model_type="minicpm",
        feature="experts through kernels of its own",
        num_experts=8,
        scale_emb=1.0,
        dim_model_base=64,
        scale_depth=1.0,
    ),
}
