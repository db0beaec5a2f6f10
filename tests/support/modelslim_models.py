# SPDX-License-Identifier: Apache-2.0
"""Writes tiny ModelSlim checkpoints from float ones, and transformers' models that compute as such a checkpoint says.

Independent of the product's reader: from the format's description (msModelSlim, ``quantization_formats/ascendv1.md``). The
oracle has the checkpoint's integers and quantises activations by the format's formulas, in float64 inside each layer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from .tiny_models import VOCABULARY, Case

DESCRIPTION = "quant_model_description.json"
# Above what the engine's float16 changes in these models' logits where it moves a value over a step of int8.
MARGIN = 0.3
EXPERT = ".experts."


@dataclass(frozen=True)
class Export:
    """How a checkpoint is written.

    Attributes:
        attention, dense, experts: types of the linear layers of attention, of other MLPs, of routed experts.
        float_layers: decoder layers that stay float.
        dtype: of the whole model; bfloat16 models have scales as float32, others as int64.
        offset: static activations are asymmetric in layers with odd numbers.
        clip: static scales as a fraction of what was calibrated; below 1 values saturate.
        description: name of the file.
    """

    attention: str = "W8A8"
    dense: str = "W8A8_DYNAMIC"
    experts: str = "W8A8_DYNAMIC"
    float_layers: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float16
    offset: bool = True
    clip: float = 1.0
    description: str = DESCRIPTION

    def kind(self, module: str) -> str:
        """The type of a module, by its name in transformers."""
        parts = module.split(".")
        layer = int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
        linear = module.endswith(("_proj", "kv_a_proj_with_mqa")) and not module.endswith(("kv_b_proj", "eh_proj"))
        if layer in self.float_layers or not linear:
            return "FLOAT"
        if EXPERT in module:
            return self.experts
        return self.attention if ".self_attn." in module else self.dense


@dataclass(frozen=True)
class Activations:
    """The range that a linear layer's inputs were seen in."""

    low: float
    high: float

    def quantiser(self, asymmetric: bool, clip: float) -> tuple[float, int]:
        """Scale and offset: the range is spread over -128 to 127, or symmetrically over -127 to 127."""
        if not asymmetric:
            return max(-self.low, self.high) * clip / 127, 0
        scale = (self.high - self.low) * clip / 255
        return scale, max(-128, min(127, round(-128 - self.low * clip / scale)))


def make(dense: Path, folder: Path, export: Export | None = None) -> Path:
    """Write the checkpoint made from the float checkpoint ``dense`` below ``folder``; return its path."""
    export = export or Export()
    path = folder / f"{dense.name}-modelslim"
    shutil.copytree(dense, path, ignore=shutil.ignore_patterns("*.safetensors", "cases.json"))
    seen = calibrate(dense)
    tensors: dict[str, torch.Tensor] = {}
    types: dict[str, Any] = {"model_quant_type": export.attention, "version": "1.0.0", "group_size": 0}
    weights = load_file(dense / "model.safetensors")
    for name, weight in weights.items():
        module, _, suffix = name.rpartition(".")
        kind = export.kind(module) if suffix in ("weight", "bias") else "FLOAT"
        if kind == "FLOAT" or suffix == "bias":
            tensors[name] = weight.to(export.dtype) if weight.is_floating_point() else weight
            types[name] = "FLOAT"
            continue
        for key, tensor in quantised(
            weight, weights.get(f"{module}.bias"), kind, seen.get(module), module, export
        ).items():
            tensors[f"{module}.{key}"] = tensor
            types[f"{module}.{key}"] = kind
    save_file(tensors, path / "quant_model_weights.safetensors", metadata={"format": "pt"})
    (path / export.description).write_text(json.dumps(types, indent=1))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": str(export.dtype).removeprefix("torch.")}))
    return path


def quantised(
    weight: torch.Tensor, bias: torch.Tensor | None, kind: str, seen: Activations | None, module: str, export: Export
) -> dict[str, torch.Tensor]:
    """A linear layer's tensors, by the format's formulas; ``weight`` ``[N, K]``."""
    if kind == "W4A8_DYNAMIC":
        return quantised_to_int4(weight, module)
    weight_scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
    integers = (weight.float() / weight_scale).round().clamp(-128, 127)
    tensors = {"weight": integers.to(torch.int8)}
    if kind in ("W8A8_DYNAMIC", "W8A8_MIX"):
        tensors |= {"weight_scale": weight_scale, "weight_offset": torch.zeros_like(weight_scale)}
    if kind in ("W8A8", "W8A8_MIX"):
        asymmetric = export.offset and any(part.isdigit() and int(part) % 2 for part in module.split("."))
        input_scale, input_offset = (seen or Activations(-1.0, 1.0)).quantiser(asymmetric, export.clip)
        scale = input_scale * weight_scale.flatten()
        exact = torch.zeros(len(scale), dtype=torch.float64) if bias is None else bias.double() / scale.double()
        correction = integers.double().sum(dim=1) * input_offset
        tensors |= {
            "input_scale": torch.tensor([input_scale]),
            "input_offset": torch.tensor([float(input_offset)]),
            "quant_bias": (exact - correction).round().to(torch.int32),
            "deq_scale": scale if export.dtype == torch.bfloat16 else scale.view(torch.int32).to(torch.int64),
        }
    return tensors


def quantised_to_int4(weight: torch.Tensor, module: str) -> dict[str, torch.Tensor]:
    """W4A8_DYNAMIC per channel: output 2 j in the lower half of row j, 2 j + 1 in the upper; ``scale_bias`` is 8 times the
    sum of the weights, for down projections in sixteen parts of the inputs."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 7
    integers = (weight.float() / scale).round().clamp(-8, 7).to(torch.int64)
    packed = (integers[0::2] & 15) + ((integers[1::2] & 15) << 4)
    exact = integers.double() * scale.double()
    parts = 16 if module.endswith("down_proj") else 1
    return {
        "weight": torch.where(packed > 127, packed - 256, packed).to(torch.int8),
        "weight_scale": scale,
        "weight_offset": torch.zeros_like(scale),
        "scale_bias": 8 * exact.reshape(len(exact), parts, -1).sum(dim=2).float(),
    }


def of_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 ``[N, K]`` from the bytes ``[N / 2, K]`` of ``quantised_to_int4``."""
    bits = packed.to(torch.int64) & 255
    halves = torch.stack([bits & 15, bits >> 4], dim=1).flatten(0, 1)
    return torch.where(halves > 7, halves - 16, halves).to(torch.int8)


@torch.inference_mode()
def calibrate(dense: Path) -> dict[str, Activations]:
    """The inputs' ranges of the float model's linear layers, over a few prompts."""
    model = AutoModelForCausalLM.from_pretrained(dense, torch_dtype=torch.float32).eval()
    seen: dict[str, Activations] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
            low, high = float(inputs[0].min()), float(inputs[0].max())
            known = seen.get(name, Activations(low, high))
            seen[name] = Activations(min(known.low, low), max(known.high, high))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(watch(name))
    generator = torch.Generator().manual_seed(31)
    for length in (40, 120, 300):
        model(torch.randint(3, VOCABULARY, (1, length), generator=generator))
    return seen


class StaticLinear(nn.Module):
    """``(round(x / input_scale + input_offset) @ W + quant_bias) * deq_scale``, in float64."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = {name: tensor.double() for name, tensor in tensors.items() if name != "deq_scale"}
        scale = tensors["deq_scale"]
        bits = scale.dtype == torch.int64
        self.deq_scale = (scale.to(torch.int32).view(torch.float32) if bits else scale).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = self.tensors
        integers = (x.double() / known["input_scale"] + known["input_offset"]).round().clamp(-128, 127)
        return ((integers @ known["weight"].t() + known["quant_bias"]) * self.deq_scale).to(x.dtype)


class DynamicLinear(nn.Module):
    """``round(x / s) @ W * s * weight_scale + bias`` with ``s`` a 127th of each row's largest value, in float64."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight = tensors["weight"].double() * tensors["weight_scale"].double()
        self.bias = tensors["bias"].double() if "bias" in tensors else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.double()
        scale = wide.abs().amax(dim=-1, keepdim=True) / 127
        integers = (wide / scale.masked_fill(scale == 0, 1)).round()
        product = integers @ self.weight.t() * scale
        return (product if self.bias is None else product + self.bias).to(x.dtype)


class DynamicExperts(nn.Module):
    """Routed experts of ``DynamicLinear`` parts, in the place of transformers' experts."""

    def __init__(self, experts: list[dict[str, DynamicLinear]]) -> None:
        super().__init__()
        self.experts = experts

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        out = torch.zeros_like(hidden_states)
        for index, parts in enumerate(self.experts):
            token, place = (top_k_index == index).nonzero(as_tuple=True)
            if len(token):
                x = hidden_states[token]
                middle = nn.functional.silu(parts["gate_proj"](x)) * parts["up_proj"](x)
                out.index_add_(0, token, parts["down_proj"](middle) * top_k_weights[token, place, None].to(x.dtype))
        return out


def oracle(dense: Path, quantised_checkpoint: Path) -> nn.Module:
    """transformers' model in float32 with the layers of the checkpoint in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(dense, torch_dtype=torch.float32).eval()
    (file,) = quantised_checkpoint.glob("*.safetensors")
    (description,) = quantised_checkpoint.glob("quant_model_description*.json")
    types, tensors = json.loads(description.read_text()), load_file(file)

    def part(module: str) -> nn.Module:
        own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.rpartition(".")[0] == module}
        if types[f"{module}.weight"] == "W4A8_DYNAMIC":
            own["weight"] = of_int4(own["weight"])
        return StaticLinear(own) if types[f"{module}.weight"] == "W8A8" else DynamicLinear(own)

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and types.get(f"{name}.weight", "FLOAT") != "FLOAT":
            model.set_submodule(name, part(name))
        elif name.endswith(".experts") and types.get(f"{name}.0.down_proj.weight", "FLOAT") != "FLOAT":
            count = sum(1 for key in types if key.startswith(f"{name}.") and key.endswith(".down_proj.weight"))
            names = ("gate_proj", "up_proj", "down_proj")
            experts = [{p: part(f"{name}.{index}.{p}") for p in names} for index in range(count)]
            model.set_submodule(name, DynamicExperts(experts))  # type: ignore[arg-type]
    return model


@torch.inference_mode()
def clear_cases(model: nn.Module, lengths: Sequence[int], tokens: int) -> list[Case]:
    """Of many prompts of each length the one whose greedy answer the oracle decides most clearly, by ``MARGIN`` at least."""
    generator = torch.Generator().manual_seed(29)
    return [_clearest(model, length, tokens, generator) for length in lengths]


def _clearest(model: nn.Module, length: int, tokens: int, generator: torch.Generator) -> Case:
    known = torch.randint(3, VOCABULARY, (64, length), generator=generator)
    margin = torch.full((len(known),), float("inf"))
    for _ in range(tokens):
        best = model(known).logits[:, -1].topk(2)
        margin = margin.minimum(best.values[:, 0] - best.values[:, 1])
        known = torch.cat([known, best.indices[:, :1]], dim=1)
    chosen = int(margin.argmax())
    if margin[chosen] < MARGIN:
        raise RuntimeError(f"no prompt of length {length} has a margin of {MARGIN} at {tokens} tokens")
    return Case(known[chosen, :length].tolist(), known[chosen, length:].tolist())
