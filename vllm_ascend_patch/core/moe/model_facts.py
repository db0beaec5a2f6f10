# SPDX-License-Identifier: Apache-2.0
"""Reads the MoE layers' sizes from a checkpoint's ``config.json``. No torch, no device, no vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_ascend_patch.core.weight_formats import WeightFormat

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
        group_size: inputs that share a scale of 2 bytes, 0 where that is one per channel.
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
    group_size: int = 0

    @property
    def numbers(self) -> str:
        """How experts compute, in short: ``W8A8``, ``W4A8``, ``W4A16``, or the dtype."""
        if self.quantized:
            return "W4A8" if self.int4 else "W8A8"
        return "W4A16" if self.int4 else self.dtype

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weights (gate, up and down; of scales those of groups)."""
        values = 3 * self.hidden_size * self.intermediate_size
        if self.int4:
            return values // 2 + (2 * values // self.group_size if self.group_size else 0)
        return values * (1 if self.quantized else _DTYPES[self.dtype])

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any], int8_experts: bool | None = None) -> ModelFacts:
        """Read a parsed ``config.json``; ``MoEConfigError`` names what is missing. ``int8_experts``: what is known of them
        from elsewhere."""
        text = {**config, **(config.get("text_config") or {})}
        experts = _find(name, text, _EXPERTS, "routed experts")
        layers = _find(name, text, ("num_hidden_layers",), "number of layers")
        quantized, int4, group_size, note = _quantization(WeightFormat.of(text, layers, has_experts=True))
        if int8_experts is not None:
            quantized, int4, group_size, note = int8_experts, False, 0, ""
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
            int4=int4,
            group_size=group_size,
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


def _quantization(found: WeightFormat | None) -> tuple[bool, bool, int, str]:
    """Whether experts take int8 rows, whether their weights are int4, inputs per scale, and a note when they are something
    else."""
    if found is None or (found.groups and found.experts is None) or found.mxfp4:  # bfloat16 once it is loaded
        return False, False, 0, ""
    if found.experts is not None and found.experts.w8a8_experts:
        return True, False, 0, ""
    if found.experts is not None and found.experts.w4a8:
        return True, True, 0, ""
    if found.experts is not None and found.experts.w4a16:
        return False, True, found.experts.weights.group_size, ""
    return (
        False,
        False,
        0,
        f"quantisation {found.method!r} of experts is not served; the plan is for unquantised experts",
    )
