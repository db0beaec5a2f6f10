# SPDX-License-Identifier: Apache-2.0
"""Families that take images, too: served with text here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from .family import SIZES, VOCABULARY, Family
from .hybrids import LINEAR
from .latent import AS_PUBLISHED, V3
from .windows import GEMMA4, LLAMA4, TEMPERATURE

_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
}
_TOKENS = {"image_token_id": 505, "video_token_id": 506, "vision_start_token_id": 507, "vision_end_token_id": 508}
_TEXT_ONLY = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
_OMNI: dict[str, Any] = {
    "text_config": {
        **SIZES,
        "head_dim": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "mlp_only_layers": [],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {**_VISION, "deepstack_visual_indexes": [0], "image_size": 128, "apply_vit_abs_pos_embed": True},
    "audio_config": {
        "num_mel_bins": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 32,
        "output_dim": 64,
        "downsample_hidden_size": 16,
    },
    "audio_token_id": 504,
    "image_token_id": 505,
    "video_token_id": 506,
    "vision_start_token_id": 507,
    "audio_start_token_id": 509,
}


def _qwen_files(folder: Path) -> None:
    """A tokenizer, and how pictures are cut."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    special = {505: "<|image_pad|>", 506: "<|video_pad|>", 507: "<|vision_start|>", 508: "<|vision_end|>"}
    words = {special.get(number, f"w{number}"): number for number in range(VOCABULARY)}
    parts = Tokenizer(models.WordLevel(words, unk_token="w3"))
    parts.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    cut = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**cut, size=size),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=parts, pad_token="w0", additional_special_tokens=list(special.values())
        ),
        video_processor=Qwen3VLVideoProcessor(**cut),
        chat_template="{{ messages }}",
    ).save_pretrained(folder)


def _inputs_first(tensors: dict[str, Any]) -> dict[str, Any]:
    """Fused weights of experts as the hub has them, ``[E, K, N]``; transformers writes its own ``[E, N, K]``."""
    fused = ("experts.gate_up_proj", "experts.down_proj")
    return {name: tensor.mT.contiguous() if name.endswith(fused) else tensor for name, tensor in tensors.items()}


def _kimi(tensors: dict[str, Any]) -> dict[str, Any]:
    """The language model's, under the hub's names: transformers writes them as if they belonged to the encoder."""
    language = {name: tensor for name, tensor in tensors.items() if name.startswith("language_model.")}
    return {name.replace("model.blocks.", "model.layers."): tensor for name, tensor in language.items()}


def _kimi_files(folder: Path) -> None:
    """A tokenizer, and how images are cut, which vLLM's class asks for before it knows that there will be none."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(VOCABULARY) if number != 505} | {"<|media_pad|>": 505}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")))
    tokenizer.save_pretrained(folder)
    cut = {
        "patch_size": 14,
        "merge_kernel_size": 2,
        "temporal_merge_kernel_size": 4,
        "in_patch_limit": 64,
        "in_patch_limit_each_frame": None,
        "in_patch_limit_video": None,
        "patch_limit_on_one_side": 8,
        "fixed_output_tokens": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": cut}))


def _thinker(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"thinker.{name}": tensor for name, tensor in tensors.items()}


FAMILIES: dict[str, Family] = {
    "qwen3_vl_moe": Family(
        architectures=("Qwen3VLMoeForConditionalGeneration",),
        config="Qwen3VLMoeConfig",
        model="Qwen3VLMoeForConditionalGeneration",
        values={
            "text_config": {
                **SIZES,
                "head_dim": 32,
                "intermediate_size": 64,
                "moe_intermediate_size": 48,
                "num_experts": 8,
                "num_experts_per_tok": 4,
                "norm_topk_prob": True,  # as published; transformers renormalises always and writes nothing
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": [6, 5, 5],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {**_VISION, "deepstack_visual_indexes": [0]},
            **_TOKENS,
        },
        rename=_inputs_first,
        arguments=_TEXT_ONLY,
        feature="text requests: rotary positions of three kinds, fused weights of experts",
    ),
    "qwen3_omni_moe": Family(
        architectures=("Qwen3OmniMoeForConditionalGeneration",),
        config="Qwen3OmniMoeThinkerConfig",
        model="Qwen3OmniMoeThinkerForConditionalGeneration",
        values=_OMNI,
        edits={"model_type": "qwen3_omni_moe", "thinker_config": _OMNI, "talker_config": None, "code2wav_config": None},
        rename=_thinker,
        arguments={"limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0}},
        feature="text requests: Qwen3-Omni's thinker",
    ),
    "qwen3_5_moe": Family(
        architectures=("Qwen3_5MoeForConditionalGeneration",),
        config="Qwen3_5MoeConfig",
        model="Qwen3_5MoeForConditionalGeneration",
        values={"text_config": dict(LINEAR), "vision_config": _VISION, **_TOKENS},
        arguments=_TEXT_ONLY,
        feature="text requests: gated DeltaNet in three of four layers, as published",
    ),
    "glm4v_moe": Family(
        architectures=("Glm4vMoeForConditionalGeneration",),
        config="Glm4vMoeConfig",
        model="Glm4vMoeForConditionalGeneration",
        values={
            "text_config": {
                **SIZES,
                "head_dim": 32,
                "intermediate_size": 64,
                "moe_intermediate_size": 32,
                "num_experts_per_tok": 4,
                "n_shared_experts": 1,
                "n_routed_experts": 8,
                "n_group": 1,
                "topk_group": 1,
                "use_qk_norm": False,  # as published; transformers has no norms and writes nothing
                "first_k_dense_replace": 1,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": [4, 2, 2],
                    "partial_rotary_factor": 0.5,
                },
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "num_heads": 2,
                "in_channels": 3,
                "image_size": 56,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "out_hidden_size": 64,
                "intermediate_size": 32,
            },
            "image_token_id": 505,
            "video_token_id": 506,
            "image_start_token_id": 507,
            "image_end_token_id": 508,
            "video_start_token_id": 509,
            "video_end_token_id": 510,
        },
        arguments=_TEXT_ONLY,
        feature="text requests: GLM-4.5V",
    ),
    "kimi_k25": Family(
        architectures=("KimiK25ForConditionalGeneration",),
        config="Kimi_K25Config",
        model="Kimi_K25ForConditionalGeneration",
        values={
            "text_config": {**V3, **AS_PUBLISHED},
            "vision_config": {
                "patch_size": 14,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
            },
            "projection_hidden_size": 32,
            "image_token_id": 505,
            "video_token_id": 506,
            "vision_start_token_id": 507,
            "vision_end_token_id": 508,
            "tie_word_embeddings": False,
        },
        rename=_kimi,
        files=_kimi_files,
        arguments={"limit_mm_per_prompt": {"vision_chunk": 0}, "skip_tokenizer_init": False},
        feature="text requests: Kimi-K2.5, DeepSeek-V3's layers",
    ),
    "llama4_images": Family(
        architectures=("Llama4ForConditionalGeneration",),
        config="Llama4Config",
        model="Llama4ForConditionalGeneration",
        values={
            "text_config": dict(LLAMA4),
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "vision_output_dim": 64,
            },
            "image_token_index": 505,
            "boi_token_index": 506,
            "eoi_token_index": 507,
        },
        arguments={"limit_mm_per_prompt": {"image": 0}, **TEMPERATURE},
        feature="text requests: the class of the published models",
        layouts=("1 NPU",),
    ),
    "gemma4_images": Family(
        architectures=("Gemma4ForConditionalGeneration",),
        query_norm=0.2,
        config="Gemma4Config",
        model="Gemma4ForConditionalGeneration",
        values={
            "text_config": {**GEMMA4, "global_head_dim": 32},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
            },
            "audio_config": None,
            "image_token_id": 505,
            "video_token_id": 506,
            "boi_token_id": 507,
            "eoi_token_id": 508,
        },
        arguments=_TEXT_ONLY,
        feature="text requests: the class of the published models",
        layouts=("1 NPU",),
    ),
    "aria": Family(
        architectures=("AriaForConditionalGeneration",),
        config="AriaConfig",
        model="AriaForConditionalGeneration",
        values={
            "text_config": {
                **SIZES,
                "model_type": "aria_text",
                "intermediate_size": 32,
                "moe_num_experts": 8,
                "moe_topk": 2,
                "moe_num_shared_experts": 1,
            },
            "vision_config": {
                "model_type": "idefics3_vision",
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
            },
            "projector_patch_to_query_dict": {"16": 4},
            "image_token_index": 505,
        },
        arguments={"limit_mm_per_prompt": {"image": 0}},
        feature="text requests: fused weights of experts, shared experts",
        layouts=("1 NPU",),
    ),
}

_PICTURES: dict[str, Any] = {
    "feature": "the same with a picture in each request",
    "files": _qwen_files,
    "picture": 505,
    "around_picture": (507, 508),
    "arguments": {"limit_mm_per_prompt": {"image": 1, "video": 0}, "skip_tokenizer_init": False},
}
FAMILIES |= {f"{name}_pictures": replace(FAMILIES[name], **_PICTURES) for name in ("qwen3_vl_moe", "qwen3_5_moe")}
