# SPDX-License-Identifier: Apache-2.0
"""Architectures that a start refuses by what their configuration says: a configuration of the published size, no weights.

Their classes have every other key; vLLM's or transformers' own defaults stand for it.
"""

from __future__ import annotations

from typing import Any

from .family import Family

_DEEPSEEK_V4 = {
    "vocab_size": 129280,
    "hidden_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 2048,
    "index_topk": 512,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "compress_ratios": [0, 4, 128, 0],
    "max_position_embeddings": 1024,
}


def _refused(architecture: str, model_type: str, feature: str, **values: Any) -> Family:
    return Family(
        architectures=(architecture,),
        config="",
        values={"model_type": model_type, **values},
        feature=feature,
        dtype="bfloat16",
        layouts=("1 NPU",),
    )


FAMILIES: dict[str, Family] = {
    "deepseek_v4": _refused(
        "DeepseekV4ForCausalLM", "deepseek_v4", "compressed caches, sparse attention", **_DEEPSEEK_V4
    ),
    "deepseek_v41": _refused(
        "DeepseekV41ForCausalLM", "deepseek_v41", "compressed caches, sparse attention", **_DEEPSEEK_V4
    ),
    "glm5_next_text": _refused("Glm5NextForCausalLM", "glm5_next_text", "linear attention beside sparse attention"),
    "glm5_next": _refused("Glm5NextForConditionalGeneration", "glm5_next", "the same with images"),
    "qwen4_exp_text": _refused("Qwen4ExpForCausalLM", "qwen4_exp_text", "linear attention"),
    "qwen4_exp": _refused("Qwen4ExpForConditionalGeneration", "qwen4_exp", "the same with images"),
    "minimax_m3": _refused("MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl", "sparse attention"),
    "inkling_text": _refused("InklingForCausalLM", "inkling_model", "attention with convolution states"),
    "inkling": _refused("InklingForConditionalGeneration", "inkling_mm_model", "the same with images"),
    "kimi_vl": _refused("KimiVLForConditionalGeneration", "kimi_vl", "latent attention, images"),
    "kimi_k3": _refused("KimiK3ForConditionalGeneration", "kimi_k3", "linear attention, images"),
    "bailing_v3_vl": _refused(
        "BailingMoeV3VLForConditionalGeneration", "bailing_moe_v3_vl", "linear attention, images"
    ),
    "diffusion_gemma": _refused(
        "DiffusionGemmaForBlockDiffusion",
        "diffusion_gemma",
        "blocks of tokens by diffusion, not one token after another",
    ),
}
