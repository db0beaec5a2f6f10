# SPDX-License-Identifier: Apache-2.0
"""A tiny W4A16 checkpoint in compressed-tensors' packed format, and the same weights dequantised, for comparison.

Independent of the product's reader: from the description of ``pack-quantized`` in compressed-tensors. A group of inputs of
an output has a scale in the model's dtype; a weight is stored as its integer plus 8, eight neighbouring inputs in an int32,
the first in the lowest bits.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_QUANTISED = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")
_ATTENTION = r"re:.*self_attn.*"


def packed(integers: torch.Tensor) -> torch.Tensor:
    """int32 ``[N, K / 8]`` of integers ``[N, K]`` from -8 to 7."""
    found = torch.zeros(integers.shape[0], integers.shape[1] // 8, dtype=torch.int64)
    for place in range(8):
        found |= (integers[:, place::8].long() + 8) << (4 * place)
    return torch.where(found >= 1 << 31, found - (1 << 32), found).to(torch.int32)


def quantised(weight: torch.Tensor, group_size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The checkpoint's tensors of a weight ``[N, K]``, and the weight that they mean, in its dtype.

    ``group_size`` 0 is one scale per output.
    """
    groups = weight.float().unflatten(1, (-1, group_size or weight.shape[1]))
    scale = (groups.abs().amax(-1) / 7.5).to(weight.dtype)
    integers = (groups / scale.float().unsqueeze(-1)).round().clamp(-8, 7)
    meant = (integers * scale.float().unsqueeze(-1)).flatten(1).to(weight.dtype)
    shape = torch.tensor(weight.shape)
    return {"weight_packed": packed(integers.flatten(1)), "weight_scale": scale, "weight_shape": shape}, meant


def make(dense: Path, folder: Path, group_size: int = 32, attention: bool = True) -> tuple[Path, Path]:
    """Write the int4 checkpoint and its dequantised twin made from the checkpoint ``dense``; return both paths.

    ``attention``: whether its layers are quantised, too, as they are not in Kimi-K2-Thinking.
    """
    name = f"{dense.name}-int4-{group_size}{'' if attention else '-experts'}"
    checkpoint, twin = folder / name, folder / f"{name}-dequantised"
    for path in (checkpoint, twin):
        shutil.copytree(dense, path, ignore=shutil.ignore_patterns("*.safetensors", "cases.json"))
    int4: dict[str, torch.Tensor] = {}
    float16: dict[str, torch.Tensor] = {}
    for key, weight in load_file(dense / "model.safetensors").items():
        if not key.endswith(_QUANTISED) or (not attention and ".self_attn." in key):
            int4[key] = float16[key] = weight
            continue
        tensors, float16[key] = quantised(weight, group_size)
        int4 |= {key.removesuffix("weight") + kind: tensor for kind, tensor in tensors.items()}
    save_file(int4, checkpoint / "model.safetensors", metadata={"format": "pt"})
    save_file(float16, twin / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = _config(group_size, attention)
    (checkpoint / "config.json").write_text(json.dumps(config))
    return checkpoint, twin


def _config(group_size: int, attention: bool) -> dict[str, Any]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size or None,
        "dynamic": False,
        "actorder": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", r"re:.*gate$", *([] if attention else [_ATTENTION])],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
