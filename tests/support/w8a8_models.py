# SPDX-License-Identifier: Apache-2.0
"""A tiny W8A8 checkpoint in compressed-tensors format, and the same weights dequantised, for comparison.

Weights are int8 per output channel; activations are left to the engine (int8 per token, dynamic).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from .routing_margins import RoutingMargins
from .tiny_models import VOCABULARY, Case

# Above what int8 activations change in these models' logits (0.3 at most, measured): a clearer choice must be kept.
MARGIN = 0.8
# Of two experts' logits, or scores: a router's choice, where it is a matter of rounding, makes another token.
ROUTING_MARGIN = 0.05
_QUANTISED = ("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight")
_SCHEME = {"num_bits": 8, "type": "int", "symmetric": True}
_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*gate$", "re:.*shared_expert_gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_SCHEME, "strategy": "channel", "dynamic": False},
            "input_activations": {**_SCHEME, "strategy": "token", "dynamic": True},
        }
    },
}


def make(dense: Path, folder: Path, keep: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Write the int8 checkpoint and its dequantised twin made from the float16 checkpoint ``dense``; return both paths.

    Linear layers whose last name is in ``keep`` stay float16.
    """
    quantised, twin = folder / f"{dense.name}-w8a8", folder / f"{dense.name}-dequantised"
    for path in (quantised, twin):
        shutil.copytree(dense, path, ignore=shutil.ignore_patterns("*.safetensors", "cases.json"))
    int8, float16 = {}, {}
    for name, weight in load_file(dense / "model.safetensors").items():
        if not name.endswith(_QUANTISED) or name.split(".")[-2] in keep:
            int8[name] = float16[name] = weight
            continue
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
        rounded = (weight.float() / scale).round().clamp(-127, 127)
        int8[name] = rounded.to(torch.int8)
        int8[name + "_scale"] = scale
        float16[name] = (rounded * scale).to(torch.float16)
    save_file(int8, quantised / "model.safetensors", metadata={"format": "pt"})
    save_file(float16, twin / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    ignored = {"ignore": [*_CONFIG["ignore"], *(f"re:.*{name}$" for name in keep)]}
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": _CONFIG | ignored}))
    return quantised, twin


@torch.inference_mode()
def first_token_cases(twin: Path, count: int, tokens: int = 1) -> list[Case]:
    """Prompts whose next ``tokens`` tokens the dequantised model, in float32, chooses by at least ``MARGIN`` each, and their
    experts by ``ROUTING_MARGIN``."""
    model = AutoModelForCausalLM.from_pretrained(twin, torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(23)
    cases: list[Case] = []
    while len(cases) < count:
        prompt = torch.randint(
            3, VOCABULARY, (int(torch.randint(1, 40, (), generator=generator)),), generator=generator
        ).tolist()
        answer: list[int] = []
        while len(answer) < tokens:
            with RoutingMargins(model) as routing:
                best = model(torch.tensor([prompt + answer])).logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < MARGIN or routing.smallest[-1] < ROUTING_MARGIN:
                break
            answer.append(int(best.indices[0]))
        else:
            cases.append(Case(prompt, answer))
    return cases
