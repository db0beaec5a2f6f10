# SPDX-License-Identifier: Apache-2.0
"""A tiny compressed-tensors checkpoint with W4A8 experts, and transformers' model that computes as it says.

Independent of the product's reader: an expert's linear layers have integers from -8 to 7, a byte each, and a float32 scale
per output; activations are rounded to int8 per token while serving. What is not an expert stays float.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from .modelslim_models import DynamicExperts, DynamicLinear

EXPERTS = ".mlp.experts."
PARTS = ("gate_proj", "up_proj", "down_proj")
_INT: dict[str, Any] = {"type": "int", "symmetric": True, "group_size": None, "actorder": None}
_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*gate$", "re:.*self_attn.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT, "num_bits": 4, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT, "num_bits": 8, "strategy": "token", "dynamic": True},
            "output_activations": None,
        }
    },
}


def quantised(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a weight ``[N, K]``."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 7.5
    return {"weight": (weight.float() / scale).round().clamp(-8, 7).to(torch.int8), "weight_scale": scale}


def make(dense: Path, folder: Path) -> Path:
    """Write the checkpoint made from the float16 checkpoint ``dense`` below ``folder``; return its path."""
    path = folder / f"{dense.name}-w4a8"
    shutil.copytree(dense, path, ignore=shutil.ignore_patterns("*.safetensors", "cases.json"))
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(dense / "model.safetensors").items():
        module = name.removesuffix(".weight")
        own = quantised(weight) if EXPERTS in name else {"weight": weight}
        tensors |= {f"{module}.{kind}": tensor for kind, tensor in own.items()} if module != name else {name: weight}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": _CONFIG}))
    return path


def oracle(dense: Path, checkpoint: Path) -> nn.Module:
    """transformers' model in float32 with the checkpoint's experts in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(dense, torch_dtype=torch.float32).eval()
    tensors = load_file(checkpoint / "model.safetensors")

    def part(module: str) -> DynamicLinear:
        return DynamicLinear({kind: tensors[f"{module}.{kind}"] for kind in ("weight", "weight_scale")})

    for name, _ in list(model.named_modules()):
        if name.endswith(EXPERTS.rstrip(".")):
            count = sum(1 for key in tensors if key.startswith(f"{name}.") and key.endswith("down_proj.weight"))
            experts = [{kind: part(f"{name}.{index}.{kind}") for kind in PARTS} for index in range(count)]
            model.set_submodule(name, DynamicExperts(experts))
    return model
