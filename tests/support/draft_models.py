# SPDX-License-Identifier: Apache-2.0
"""A tiny GLM-4-MoE with a multi-token-prediction layer, whose drafts are right now and then.

The target is what ``tiny_models`` makes of the configuration, with weak layers, so that its next token depends mostly on the
current one. Transformers has no such prediction layer: it is added to the checkpoint here, as a copy of the last decoder
layer that looks at the current token's embedding. Drafts never decide what is generated, so any weights would do for the
oracle; these make both outcomes of a draft come up.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Glm4MoeConfig

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
    for name, weight in weights.items():
        if name.endswith(_WEAK):
            weight.mul_(0.4)
    weights |= prediction_layer(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return path


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
