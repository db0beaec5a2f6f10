# SPDX-License-Identifier: Apache-2.0
"""A tiny W8A8 checkpoint in compressed-tensors format whose linear layers have static activations, one scale per tensor, and
transformers' model that computes as it says. Routed experts have activations per token, in a group of their own.

The formulas' layers are ``modelslim_models.py``'s: ``round(x / input_scale)`` kept within int8, in float64.
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

from .modelslim_models import EXPERT, DynamicExperts, DynamicLinear, StaticLinear, calibrate

_INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
_WEIGHTS = {**_INT8, "strategy": "channel", "dynamic": False}
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def make(dense: Path, folder: Path, clip: float = 1.0) -> Path:
    """Write the checkpoint made from the checkpoint ``dense``; ``clip`` below 1 makes activations saturate."""
    path = folder / f"{dense.name}-static"
    shutil.copytree(dense, path, ignore=shutil.ignore_patterns("*.safetensors", "cases.json"))
    seen, tensors = calibrate(dense), {}
    for name, weight in load_file(dense / "model.safetensors").items():
        tensors[name] = weight
        if not name.endswith("_proj.weight"):
            continue
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight.float() / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
        module = name.removesuffix(".weight")
        if EXPERT not in name:
            known = seen[module]
            tensors[f"{module}.input_scale"] = torch.tensor([max(-known.low, known.high) * clip / 127])
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    groups = {
        "group_0": {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": _activations("tensor")},
        "group_1": {
            "targets": [r"re:.*\.experts\..*"],
            "weights": _WEIGHTS,
            "input_activations": _activations("token"),
        },
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", r"re:.*gate$"],
        "config_groups": groups,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def oracle(dense: Path, checkpoint: Path) -> nn.Module:
    """transformers' model in float32 with the layers of the checkpoint in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(dense, torch_dtype=torch.float32).eval()
    tensors = load_file(checkpoint / "model.safetensors")

    def own(module: str) -> dict[str, torch.Tensor]:
        return {name.rpartition(".")[2]: t for name, t in tensors.items() if name.rpartition(".")[0] == module}

    for name, _ in list(model.named_modules()):
        if f"{name}.input_scale" in tensors:
            found = own(name)
            scale = found["input_scale"].double() * found["weight_scale"].double().flatten()
            bias = found.get("bias", torch.zeros(len(scale))).double()
            static = StaticLinear(
                {
                    "weight": found["weight"],
                    "input_scale": found["input_scale"],
                    "input_offset": torch.zeros(1),
                    "deq_scale": scale,
                    "quant_bias": bias / scale,
                }
            )
            model.set_submodule(name, static)
        elif name.endswith(".experts"):
            count = sum(1 for key in tensors if key.startswith(f"{name}.") and key.endswith("down_proj.weight"))
            parts = [{p: DynamicLinear(own(f"{name}.{index}.{p}")) for p in _PROJECTIONS} for index in range(count)]
            model.set_submodule(name, DynamicExperts(parts))
    return model


def _activations(per: str) -> dict[str, Any]:
    return {**_INT8, "strategy": per, "dynamic": per == "token"}
