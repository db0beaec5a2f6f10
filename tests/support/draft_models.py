# SPDX-License-Identifier: Apache-2.0
"""A tiny GLM-4-MoE with a multi-token-prediction layer and a tiny Qwen3-MoE with an EAGLE3 drafter, whose drafts are right
now and then.

The target is what ``tiny_models`` makes of the configuration, with weak layers, so that its next token depends mostly on the
current one. Transformers has no such prediction layer: it is added to the checkpoint here, as a copy of the last decoder
layer that looks at the current token's embedding. Drafts never decide what is generated, so any weights would do for the
oracle; these make both outcomes of a draft come up.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Glm4MoeConfig, LlamaConfig

from . import tiny_models

LAYERS = 2
CONFIG = Glm4MoeConfig(
    **tiny_models._COMMON | {"num_hidden_layers": LAYERS},
    head_dim=32,
    intermediate_size=64,
    moe_intermediate_size=32,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=4,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    routed_scaling_factor=1.0,  # any other is wrong in float16 in vLLM's model of this family, on every device
    use_qk_norm=True,
    num_nextn_predict_layers=1,
)
_WEAK = ("o_proj.weight", "down_proj.weight")


def make(folder: Path) -> Path:
    """Write the checkpoint (float16 safetensors) below ``folder`` and return its path."""
    path = folder / "glm4_moe"
    if (path / "config.json").exists():
        return path
    tiny_models.CONFIGS["glm4_moe"] = CONFIG
    tiny_models.make("glm4_moe", folder)
    file = path / "model.safetensors"
    weights = load_file(file)
    _weaken(weights)
    weights |= prediction_layer(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return path


def make_for_eagle3(folder: Path) -> tuple[Path, Path]:
    """Write a target and its EAGLE3 drafter below ``folder`` and return their paths."""
    path, drafter = folder / "qwen3_moe", folder / "qwen3_moe_eagle3"
    if (drafter / "config.json").exists():
        return path, drafter
    file = tiny_models.make("qwen3_moe", folder) / "model.safetensors"
    weights = load_file(file)
    _weaken(weights)
    save_file(weights, file, metadata={"format": "pt"})
    hidden, heads, kv_heads, width = 64, 4, 2, 32
    LlamaConfig(
        **tiny_models._COMMON | {"num_hidden_layers": 1},
        head_dim=width,
        intermediate_size=16,
        attention_bias=True,
        draft_vocab_size=tiny_models.VOCABULARY,
        target_hidden_size=hidden,
        num_aux_hidden_states=1,
        eagle_aux_hidden_state_layer_ids=[2],  # after the target's last layer
        architectures=["LlamaForCausalLMEagle3"],
    ).save_pretrained(drafter)
    save_file(
        {
            name: value.to(torch.float16).contiguous()
            for name, value in eagle3(weights, hidden, heads, kv_heads, width).items()
        },
        drafter / "model.safetensors",
        metadata={"format": "pt"},
    )
    return path, drafter


def eagle3(
    target: dict[str, torch.Tensor], hidden: int, heads: int, kv_heads: int, width: int
) -> dict[str, torch.Tensor]:
    """A drafter that adds the current token's embedding to a share of the target's hidden state.

    Its layer sees the embedding in attention only: queries and keys are the same for all tokens, so that rotary embedding
    alone decides, and each token attends to itself; values are the embedding.
    """
    values = torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1)  # of (embedding, hidden state)
    gather = torch.zeros(hidden, heads, width)
    for kv_head in range(kv_heads):
        rows = slice(kv_head * width, (kv_head + 1) * width)
        gather[rows, kv_head * heads // kv_heads] = torch.eye(width)
    attention = {
        "q_proj.weight": torch.zeros(heads * width, 2 * hidden),
        "q_proj.bias": torch.full((heads * width,), 7.0),
        "k_proj.weight": torch.zeros(kv_heads * width, 2 * hidden),
        "k_proj.bias": torch.full((kv_heads * width,), 7.0),
        "v_proj.weight": values,
        "v_proj.bias": torch.zeros(kv_heads * width),
        "o_proj.weight": gather.flatten(1),
        "o_proj.bias": torch.zeros(hidden),
    }
    mlp = {
        "gate_proj.weight": torch.zeros(16, hidden),
        "up_proj.weight": torch.zeros(16, hidden),
        "down_proj.weight": torch.zeros(hidden, 16),
    }
    norms = ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm")
    return {
        **{f"midlayer.self_attn.{name}": value for name, value in attention.items()},
        **{f"midlayer.mlp.{name}": value for name, value in mlp.items()},
        **{f"{name}.weight": torch.ones(hidden) for name in norms},
        "fc.weight": 0.3 * torch.eye(hidden),
        "embed_tokens.weight": target["model.embed_tokens.weight"].clone(),
        "lm_head.weight": target["lm_head.weight"].clone(),
    }


def _weaken(weights: dict[str, torch.Tensor]) -> None:
    """Make the next token depend mostly on the current one."""
    for name, weight in weights.items():
        if name.endswith(_WEAK):
            weight.mul_(0.4)


def prediction_layer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    last, added = f"model.layers.{LAYERS - 1}.", f"model.layers.{LAYERS}."
    layer = {
        added + name.removeprefix(last): weight.clone() for name, weight in weights.items() if name.startswith(last)
    }
    hidden = CONFIG.hidden_size
    projection = torch.cat([torch.eye(hidden), 0.3 * torch.eye(hidden)], dim=1)  # of (embedding, hidden state)
    ones = torch.ones(hidden, dtype=torch.float16)
    return layer | {
        f"{added}enorm.weight": ones.clone(),
        f"{added}hnorm.weight": ones.clone(),
        f"{added}eh_proj.weight": projection.to(torch.float16),
        f"{added}shared_head.norm.weight": weights["model.norm.weight"].clone(),
    }
