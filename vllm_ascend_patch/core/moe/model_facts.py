# SPDX-License-Identifier: Apache-2.0
"""Reads the MoE layers' sizes from a checkpoint's ``config.json``. No torch, no device, no vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MoEConfigError

# The names that model families use for the same quantity, most specific first.
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_INTERMEDIATE = ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "intermediate_size")
_DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelFacts:
    """One model's MoE layers.

    Attributes:
        name: where the configuration came from.
        num_experts: routed experts per layer, without redundant ones.
        top_k: experts per token.
        hidden_size: H.
        intermediate_size: I of one expert, not divided.
        moe_layers: layers with experts.
        dtype: of the activations.
        quantized: experts take int8 rows.
        int4: their weights are int4.
        note: what of the configuration is not modelled, empty when nothing.
    """

    name: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    moe_layers: int
    dtype: str = "bfloat16"
    quantized: bool = False
    note: str = ""
    int4: bool = False

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weights (gate, up and down; scales left out)."""
        values = 3 * self.hidden_size * self.intermediate_size
        return values // 2 if self.int4 else values * (1 if self.quantized else _DTYPES[self.dtype])

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any], int8_experts: bool | None = None) -> ModelFacts:
        """Read a parsed ``config.json``; ``MoEConfigError`` names what is missing. ``int8_experts``: what is known of them
        from elsewhere."""
        text = {**config, **(config.get("text_config") or {})}
        experts = _find(name, text, _EXPERTS, "routed experts")
        quantized, note = _quantization(text.get("quantization_config"))
        if int8_experts is not None:
            quantized, note = int8_experts, ""
        dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        if dtype not in _DTYPES:
            raise MoEConfigError(f"{name}: dtype {dtype!r} is not supported; supported: {', '.join(_DTYPES)}")
        return cls(
            name=name,
            num_experts=experts,
            top_k=_find(name, text, _TOP_K, "experts per token"),
            hidden_size=_find(name, text, ("hidden_size",), "hidden size"),
            intermediate_size=_find(name, text, _INTERMEDIATE, "intermediate size of an expert"),
            moe_layers=_moe_layers(name, text),
            dtype=dtype,
            quantized=quantized,
            note=note,
        )


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a parsed ``config.json`` speaks of routed experts."""
    text = {**config, **(config.get("text_config") or {})}
    return any(isinstance(text.get(key), int) and text[key] > 0 for key in _EXPERTS)


def load_config(model: str) -> dict[str, Any]:
    """``config.json`` of a folder, of a file, or of a model on the hub (needs ``huggingface_hub``)."""
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        path = _from_hub(model)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MoEConfigError(f"{path} is not a readable model configuration: {error}") from error
    if not isinstance(config, dict):
        raise MoEConfigError(f"{path} is not a readable model configuration: it holds no JSON object")
    return config


def _from_hub(model: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:
        raise MoEConfigError(
            f"{model!r} is no folder or file here and could not be fetched from the hub ({type(error).__name__}); give a "
            "folder with config.json, or a model name and network access"
        ) from error


def _find(name: str, config: Mapping[str, Any], keys: tuple[str, ...], what: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    raise MoEConfigError(f"{name}: no {what} in the configuration (looked for {', '.join(keys)}); is it a MoE model?")


def _moe_layers(name: str, config: Mapping[str, Any]) -> int:
    total = _find(name, config, ("num_hidden_layers",), "number of layers")
    dense = set(config.get("mlp_only_layers") or ())
    first = config.get("first_k_dense_replace") or 0
    step = config.get("decoder_sparse_step") or 1
    frequency = config.get("moe_layer_freq") or 1
    if not isinstance(frequency, int):  # one flag per layer
        return sum(1 for flag in frequency if flag)
    return sum(
        1
        for layer in range(total)
        if layer >= first and layer not in dense and (layer + 1) % step == 0 and layer % frequency == 0
    )


def _quantization(config: Mapping[str, Any] | None) -> tuple[bool, str]:
    """Whether experts are W8A8 int8, and a note when they are something else."""
    if not config:
        return False, ""
    groups = (config.get("config_groups") or {}).values()
    for group in groups:
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        int8 = all(part.get("type") == "int" and part.get("num_bits") == 8 for part in (weights, inputs))
        if int8 and inputs.get("dynamic"):
            return True, ""
    method = config.get("quant_method", "unknown")
    return False, f"quantisation {method!r} is not W8A8 dynamic; the plan is for unquantised experts"
