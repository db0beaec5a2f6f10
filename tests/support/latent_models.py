# SPDX-License-Identifier: Apache-2.0
"""Tiny models with multi-head latent attention of the real sizes: everything else is small.

Each is the shape of a family: DeepSeek-V2-Lite, DeepSeek-V3, GLM-4.7-Flash, Kimi-K2. The router's correction bias, which
transformers initialises with zeros, is drawn here, so that selection and weights differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeLiteConfig,
    PretrainedConfig,
)

from . import tiny_models
from .draft_models import prediction_layer
from .tiny_models import Case

_COMMON = tiny_models._COMMON | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
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
# In the files of the real checkpoints: vLLM goes by it, transformers does not write it.
_AS_PUBLISHED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
# q LoRA, sigmoid with bias, groups, YaRN with mscale
_DEEPSEEK_V3 = {
    **_COMMON,
    "q_lora_rank": 48,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    **_AS_PUBLISHED,
    "num_mtp_layers": 0,
    "rope_parameters": _YARN,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "deepseek_v3": DeepseekV3Config(**_DEEPSEEK_V3),
    # no q LoRA, softmax, greedy
    "deepseek_v2_lite": DeepseekV2Config(
        **_COMMON,
        q_lora_rank=None,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
        first_k_dense_replace=1,
    ),
    # 20 heads, keys and values of 256
    "glm4_moe_lite": Glm4MoeLiteConfig(
        **_COMMON | {"num_attention_heads": 20, "num_key_value_heads": 20, "qk_nope_head_dim": 192, "v_head_dim": 256},
        q_lora_rank=48,
        n_shared_experts=1,
        routed_scaling_factor=1.0,  # any other is wrong in float16 in vLLM's model of this family, on every device
        mlp_layer_types=["dense", "sparse"],
        first_k_dense_replace=1,  # the same to vLLM
    ),
    # one group, many experts
    "kimi_k2": DeepseekV3Config(
        **_COMMON | {"n_routed_experts": 32, "num_experts_per_tok": 8},
        q_lora_rank=48,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.827,
        first_k_dense_replace=1,
        norm_topk_prob=True,
        **_AS_PUBLISHED,
        num_mtp_layers=0,
    ),
}

# So many that a chunk of context, as keys and values of every head, takes more memory than anything else of a step.
MANY_HEADS: dict[str, PretrainedConfig] = {
    "deepseek_v3_16_heads": DeepseekV3Config(**_DEEPSEEK_V3 | {"num_attention_heads": 16, "num_key_value_heads": 16}),
}


def make(family: str, folder: Path, seed: int = 11) -> Path:
    """Write the checkpoint (float16 safetensors) of ``family`` below ``folder`` and return its path; another ``seed`` is
    another checkpoint of the same model."""
    path = tiny_models.path_of(family, folder, seed)
    if (path / "config.json").exists():
        return path
    tiny_models.CONFIGS[family] = (CONFIGS | MANY_HEADS)[family]
    tiny_models.make(family, folder, seed)
    file = path / "model.safetensors"
    weights = load_file(file)
    generator = torch.Generator().manual_seed(3)
    for name, weight in weights.items():
        if name.endswith("e_score_correction_bias"):
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    save_file(weights, file, metadata={"format": "pt"})
    return path


def make_with_drafter(folder: Path) -> Path:
    """The DeepSeek-V3 shape with a multi-token-prediction layer, which is one of latent attention, too."""
    source, path = make("deepseek_v3", folder), folder / "deepseek_v3_mtp"
    if (path / "config.json").exists():
        return path
    path.mkdir()
    weights = load_file(source / "model.safetensors")
    weights |= prediction_layer(weights)
    layer = f"model.layers.{tiny_models._COMMON['num_hidden_layers']}."
    weights[f"{layer}embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights[f"{layer}shared_head.head.weight"] = weights["lm_head.weight"].clone()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return path


def cases_after_a_prefix(checkpoint: Path, prefix: int, tails: Sequence[int]) -> list[Case]:
    """A prompt for each of ``tails``, its length after ``prefix`` tokens that all share, with an answer of eight tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(17)
    shared = torch.randint(3, tiny_models.VOCABULARY, (prefix,), generator=generator).tolist()
    return [tiny_models._clear_case(model, shared, length, generator, tokens=8) for length in tails]
