# SPDX-License-Identifier: Apache-2.0
"""Families with sliding windows, chunks or attention sinks in some or all layers."""

from __future__ import annotations

from typing import Any

from .family import SIZES, Family

_FOUR = {**SIZES, "num_hidden_layers": 4}
LLAMA4: dict[str, Any] = {
    **_FOUR,
    "head_dim": 32,
    "intermediate_size": 64,
    "intermediate_size_mlp": 64,
    "num_experts_per_tok": 1,
    "num_local_experts": 8,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 128,
    "floor_scale": 32,
}
GEMMA4: dict[str, Any] = {
    **SIZES,
    "tie_word_embeddings": True,
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "sliding_window": 64,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 0,
}
# As the hub's configurations of Step-3.5 have it; transformers knows the model as the language model of Step-3.7.
_STEP: dict[str, Any] = {
    **_FOUR,
    "head_dim": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "share_expert_dim": 32,
    "moe_layers_enum": "1,2,3",
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 8,
        "num_attention_groups": 2,
        "head_dim": 32,
        "true_head_dim": 32,
    },
    "sliding_window": 64,
    "rope_theta": [10000.0, 500000.0, 500000.0, 10000.0],
    "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5],
    "moe_router_scaling_factor": 2.0,
    "swiglu_limits": [0.0, 0.0, 7.0, 7.0],
    "swiglu_limits_shared": [0.0, 0.0, 0.5, 0.5],
}
_STEP_NAMES = {"num_attention_groups": 2, "moe_num_experts": 8, "moe_top_k": 4}


def _language_model(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without what belongs to images."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "lm_head."))}


TEMPERATURE = {"override_generation_config": {"attn_temperature_tuning": True}}

_GPT_OSS: dict[str, Any] = {
    **SIZES,
    "head_dim": 64,
    "intermediate_size": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "sliding_window": 64,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 256,
    },
}
_MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]}
_FOUR_BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _round_to_mxfp4(model: Any) -> None:
    """Every weight of an expert to the nearest of what four bits and a scale of 2^-4 to 2^-3 say."""
    import torch

    numbers = torch.tensor(sorted({sign * number for number in _FOUR_BITS for sign in (1, -1)}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                scales = _mxfp4_scales(weight)
                nearest = ((weight / scales).unsqueeze(-1) - numbers).abs().argmin(-1)
                weight.copy_(numbers[nearest] * scales)


def _mxfp4_scales(weight: Any) -> Any:
    """Of weights ``[E, K, N]``: another for every 32 inputs, of which no output has its own."""
    import torch

    groups = torch.arange(weight.shape[1]) // 32 % 2
    return torch.where(groups == 0, 2.0**-4, 2.0**-3)[:, None]


def _packed_mxfp4(tensors: dict[str, Any]) -> dict[str, Any]:
    """Of experts ``[E, K, N]``: bits ``[E, N, K / 32, 16]``, two numbers in a byte, and the scales' exponents."""
    import torch

    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = tensor
            continue
        scales = _mxfp4_scales(tensor).expand_as(tensor).mT[..., ::32]
        numbers = (tensor.float() / _mxfp4_scales(tensor)).mT
        bits = (numbers.abs().unsqueeze(-1) == torch.tensor(_FOUR_BITS)).int().argmax(-1) + 8 * (numbers < 0)
        pairs = (bits[..., 0::2] + 16 * bits[..., 1::2]).to(torch.uint8)
        found[f"{name}_blocks"] = pairs.unflatten(-1, (-1, 16)).contiguous()
        found[f"{name}_scales"] = (scales.log2() + 127).to(torch.uint8).contiguous()
    return found


FAMILIES: dict[str, Family] = {
    "mixtral_window": Family(
        architectures=("MixtralForCausalLM",),
        config="MixtralConfig",
        values={**SIZES, "head_dim": 32, "intermediate_size": 64, "num_local_experts": 8, "sliding_window": 64},
        feature="a window of 64 tokens in every layer",
    ),
    "gpt_oss": Family(
        architectures=("GptOssForCausalLM",),
        config="GptOssConfig",
        values=_GPT_OSS,
        dtype="bfloat16",
        feature="sinks, windows in every other layer, biases of experts, clamped SwiGLU",
    ),
    "gpt_oss_mxfp4": Family(
        architectures=("GptOssForCausalLM",),
        config="GptOssConfig",
        values=_GPT_OSS,
        dtype="bfloat16",
        edits={"quantization_config": _MXFP4},
        prepare=_round_to_mxfp4,
        rename=_packed_mxfp4,
        feature="the same from mxfp4 weights, as published",
    ),
    "granitemoe_swa": Family(
        architectures=("GraniteMoeSWAForCausalLM",),
        config="GraniteMoeSWAConfig",
        values={
            **SIZES,
            "hidden_size": 256,
            "num_hidden_layers": 3,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attention_multiplier": 0.125,
        },
        dtype="bfloat16",
        feature="sinks, windows in two of three layers",
    ),
    "llama4": Family(
        architectures=("Llama4ForCausalLM",),
        config="Llama4TextConfig",
        values=LLAMA4,
        arguments=TEMPERATURE,
        feature="chunks of 128 tokens, a layer without rotary embedding, weights on the experts' input",
    ),
    "llama4_chunk_64": Family(
        architectures=("Llama4ForCausalLM",),
        config="Llama4TextConfig",
        values={**LLAMA4, "attention_chunk_size": 64},
        arguments=TEMPERATURE,
        feature="chunks that are no whole KV blocks",
        layouts=("1 NPU",),
    ),
    "afmoe": Family(
        architectures=("AfmoeForCausalLM",),
        config="AfmoeConfig",
        values={
            **_FOUR,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "num_shared_experts": 1,
            "sliding_window": 64,
            "global_attn_every_n_layers": 4,
            "mup_enabled": True,
        },
        edits={"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1},
        feature="Arcee Trinity: windows in three of four layers, gated attention, sigmoid scores with a bias",
    ),
    "exaone_moe": Family(
        architectures=("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
        config="ExaoneMoeConfig",
        values={
            **_FOUR,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "num_shared_experts": 1,
            "sliding_window": 64,
            "sliding_window_pattern": 4,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        feature="K-EXAONE: windows in three of four layers, the fourth without rotary embedding",
    ),
    "cohere2_moe": Family(
        architectures=("Cohere2MoeForCausalLM",),
        config="Cohere2MoeConfig",
        values={
            **_FOUR,
            "tie_word_embeddings": True,  # as published; vLLM ties whatever the configuration says
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": 65,
            "logit_scale": 1.0,
        },
        edits={"sliding_window": 64},  # vLLM looks at one token more, as the model was trained; transformers does not
        feature="windows in three of four layers, of a token more than transformers takes; attention and MLP side by side",
    ),
    "gemma4_one_size": Family(
        architectures=("Gemma4ForCausalLM",),
        query_norm=0.2,
        config="Gemma4TextConfig",
        values={**GEMMA4, "global_head_dim": 32},
        feature="windows in one of two layers, GELU experts beside a dense MLP; one head size",
    ),
    "gemma4": Family(
        architectures=("Gemma4ForCausalLM",),
        query_norm=0.2,
        config="Gemma4TextConfig",
        values={**GEMMA4, "global_head_dim": 64},
        feature="the same with two head sizes, as published",
    ),
    "step3p5": Family(
        architectures=("Step3p5ForCausalLM",),
        config="Step3p7Config",
        model="Step3p7ForConditionalGeneration",
        values={
            "text_config": {**_STEP, "n_routed_experts": 8, "num_experts_per_tok": 4},
            "vision_config": {
                "hidden_size": 32,
                "mlp_ratio": 1.0,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "max_position_embeddings": 16,
            },
        },
        without=("text_config", "vision_config"),
        edits={
            **_STEP,
            **_STEP_NAMES,
            "model_type": "step3p5",
            "att_impl_type": "GQA",
            "use_head_wise_attn_gate": True,
            "yarn_only_types": ["full_attention"],
            "norm_expert_weight": True,
            "use_moe": True,
            "moe_every_n_layer": 1,
            "moe_router_activation": "sigmoid",
            "max_seq_len": 1024,
        },
        rename=_language_model,
        feature="Step-3.5: windows with more heads, gates per head, clamped SwiGLU (swiglustep)",
    ),
    "mellum": Family(
        architectures=("MellumForCausalLM",),
        config="MellumConfig",
        values={
            **_FOUR,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": 64,
        },
        feature="windows, through vLLM's Transformers backend",
    ),
    "laguna": Family(
        architectures=("LagunaForCausalLM",),
        config="LagunaConfig",
        values={
            **SIZES,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 4,
        },
        feature="a gate on the output of attention, sigmoid scores with a bias",
        layouts=("1 NPU",),
    ),
    "mimo_v2_flash": Family(
        architectures=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
        config="MiMoV2FlashConfig",
        values={
            **_FOUR,
            "head_dim": 48,
            "v_head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": 64,
        },
        feature="windows and sinks, values of another head size than keys",
        layouts=("1 NPU",),
    ),
}
