# SPDX-License-Identifier: Apache-2.0
"""In which format a checkpoint's ``config.json`` says its weights are, and whether that is served. No torch, no vLLM.

ModelSlim's checkpoints say it in a file of their own: ``modelslim.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .operator_limits import WEIGHT_QUANT_GROUP_MULTIPLE

_HERE = "on Ascend NPUs by this port"
COMPRESSED_TENSORS = "compressed-tensors"

# Methods by the names that people know them by; vLLM's names of its kernels for them are among the keys.
_KNOWN_AS = {
    **dict.fromkeys(("awq", "auto_awq", "awq_marlin"), "AWQ's layout"),
    **dict.fromkeys(("gptq", "auto_gptq", "gptq_marlin", "gptq_marlin_24", "gptq_bitblas"), "GPTQ's layout"),
    "moe_wna16": "GPTQ's or AWQ's layout",
    "bitsandbytes": "bitsandbytes' format",
    "gguf": "GGUF",
    **dict.fromkeys(("modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"), "ModelOpt's formats"),
    "quark": "Quark's formats",
    **dict.fromkeys(("inc", "auto-round", "auto_round"), "AutoRound's format"),
    "torchao": "torchao's formats",
    "fbgemm_fp8": "FBGEMM's fp8",
    "experts_int8": "int8, quantised while they are loaded,",
}
_ORDERED = ("group", "dynamic")  # inputs are not in their own order then, while serving
_FP8 = ("fp8", "deepseek_v4_fp8")
_MXFP4 = "mxfp4"
GPT_OSS_MXFP4 = "gpt_oss_mxfp4"
"""What vLLM calls mxfp4 in a checkpoint of gpt-oss, the one model that is served from it."""
MXFP4_GROUP = 32
"""Numbers of mxfp4 that share a scale."""
_FROM_MXFP4 = ("GptOssForCausalLM",)
# Where a checkpoint's experts and attention are, by the names that families give them; for patterns in lists of targets.
_LAYERS = ("model.layers", "model.language_model.layers", "language_model.model.layers")
_EXPERTS = tuple(
    f"{parent}.experts.0.{projection}"
    for parent in ("mlp", "block_sparse_moe", "feed_forward")
    for projection in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
)
_ATTENTION_OUTPUT = ("self_attn.o_proj", "self_attn.dense", "attention.o_proj")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What weights or activations of a group of layers are rounded to.

    Attributes:
        kind: ``int`` or ``float``.
        bits: of a number.
        per: what has a scale of its own: ``tensor``, ``channel``, ``group``, ``tensor_group``, ``block``, ``token``.
        group_size: inputs that share a scale, 0 for no groups.
        symmetric: zero is zero.
        dynamic: the scales are found while serving.
        order: the order that inputs were quantised in, empty for their own.
    """

    kind: str = "int"
    bits: int = 8
    per: str = "tensor"
    group_size: int = 0
    symmetric: bool = True
    dynamic: bool = False
    order: str = ""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Numbers:
        size = config.get("group_size") or 0
        return cls(
            kind=str(config.get("type") or "int"),
            bits=int(config.get("num_bits") or 8),
            per=str(config.get("strategy") or ("group" if size > 0 else "channel" if size < 0 else "tensor")),
            group_size=max(size, 0),
            symmetric=bool(config.get("symmetric", True)),
            dynamic=bool(config.get("dynamic", False)),
            order=str(config.get("actorder") or ""),
        )

    def __str__(self) -> str:
        """As in ``int4, groups of 128, asymmetric``."""
        parts = [f"{self.kind}{self.bits}", f"groups of {self.group_size}" if self.group_size else f"per {self.per}"]
        parts += [] if self.symmetric else ["asymmetric"]
        parts += [f"ordered by {self.order}"] if self.order in _ORDERED else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that compressed-tensors quantises alike.

    Attributes:
        name: in the configuration.
        targets: the layers' names, patterns (``re:...``) or classes (``Linear``).
        weights: what they are rounded to.
        inputs: what the layers' inputs are rounded to, or None.
        outputs: whether the layers' outputs are rounded, too.
        stored: how the file has the weights, as in ``pack-quantized``.
    """

    name: str
    targets: tuple[str, ...]
    weights: Numbers
    inputs: Numbers | None
    outputs: bool
    stored: str

    def __str__(self) -> str:
        if self.inputs is None:
            activations = "activations as they are"
        else:
            activations = f"{'dynamic' if self.inputs.dynamic else 'static'} activations ({self.inputs})"
        return f"weights ({self.weights}; {self.stored or 'unnamed format'}) and {activations}"

    @property
    def w8a8(self) -> bool:
        """int8 weights and activations, as the int8 linear layers take them."""
        weights, inputs = self.weights, self.inputs
        if inputs is None or self.outputs or self.stored not in ("int-quantized", "naive-quantized"):
            return False
        int8 = all(n.kind == "int" and n.bits == 8 and n.symmetric for n in (weights, inputs))
        rows = inputs.per == "token" if inputs.dynamic else inputs.per == "tensor"
        return int8 and rows and not weights.dynamic and weights.per in ("channel", "tensor")

    @property
    def w8a8_experts(self) -> bool:
        """int8 weights per channel and activations per token, as the experts take them."""
        return self.w8a8 and self.inputs is not None and self.inputs.dynamic and self.weights.per == "channel"

    @property
    def w4a16(self) -> bool:
        """Packed int4 weights beside float activations, per channel or in groups that the operators take."""
        weights = self.weights
        plain = self.inputs is None and not self.outputs and self.stored == "pack-quantized" and not weights.dynamic
        int4 = weights.kind == "int" and weights.bits == 4 and weights.symmetric
        groups = weights.per == "group" and weights.group_size % WEIGHT_QUANT_GROUP_MULTIPLE == 0
        return plain and int4 and (weights.per == "channel" or groups) and weights.order not in _ORDERED

    @property
    def w4a8(self) -> bool:
        """int4 weights per channel, a byte each, and int8 activations per token, as experts alone take them."""
        weights, inputs = self.weights, self.inputs
        if inputs is None or self.outputs or self.stored not in ("int-quantized", "naive-quantized"):
            return False
        integers = weights.kind == inputs.kind == "int" and (weights.bits, inputs.bits) == (4, 8)
        scales = weights.per == "channel" and not weights.dynamic and inputs.per == "token" and inputs.dynamic
        return integers and scales and weights.symmetric and inputs.symmetric and weights.order not in _ORDERED


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """What a ``quantization_config`` says.

    Attributes:
        method: as the checkpoint names it.
        groups: of compressed-tensors.
        experts: the group that routed experts belong to, None where they are not quantised or the model has none.
        attention: the group that the output projection of attention belongs to, None where it is not quantised.
        extras: what compressed-tensors does besides rounding weights and inputs, in words.
    """

    method: str
    groups: tuple[Group, ...] = ()
    experts: Group | None = None
    attention: Group | None = None
    extras: tuple[str, ...] = ()

    @property
    def mxfp4(self) -> bool:
        """Experts in mxfp4, the rest unquantised."""
        return self.method in (_MXFP4, GPT_OSS_MXFP4)

    @classmethod
    def of(cls, config: Mapping[str, Any], layers: int, has_experts: bool) -> WeightFormat | None:
        """Read a parsed ``config.json``; None for a checkpoint that says nothing of it.

        Args:
            config: with the text model's entries among its own.
            layers: of the model.
            has_experts: whether there are routed experts.
        """
        own = config.get("quantization_config") or config.get("compression_config")
        if not isinstance(own, Mapping):
            return None
        groups = tuple(
            _group(name, group, str(own.get("format") or ""))
            for name, group in (own.get("config_groups") or {}).items()
            if isinstance(group, Mapping) and group.get("weights")
        )
        return cls(
            method=str(own.get("quant_method") or "an unnamed method"),
            groups=groups,
            experts=_of(_EXPERTS, groups, own.get("ignore") or (), layers) if has_experts else None,
            attention=_of(_ATTENTION_OUTPUT, groups, own.get("ignore") or (), layers),
            extras=tuple(_extras(own)),
        )


def method_problem(name: str, method: str) -> str | None:
    """Why no checkpoint in the format of ``method`` is served; None where some are."""
    if method in ("", COMPRESSED_TENSORS, "ascend", GPT_OSS_MXFP4):
        return None
    if method in _FP8:
        return (
            f"{name}: fp8 weights, in blocks with a scale each or not, are not supported {_HERE}: bfloat16 weights are, and "
            "W8A8 (int8) ones. Take a bfloat16 or W8A8 checkpoint of this model, or convert this one."
        )
    if method == _MXFP4:
        return (
            f"{name}: mxfp4 weights are not supported {_HERE}: bfloat16 weights are, about four times as large, and mxfp4 "
            "of gpt-oss. Take a bfloat16 checkpoint of this model."
        )
    known = _KNOWN_AS.get(method)
    what = f"weights in {known} (quantisation {method!r})" if known else f"weights quantised by {method!r}"
    return f"{name}: {what} are not supported {_HERE}: {_SUPPORTED}. {_REMEDY}"


def problem(name: str, architecture: str, found: WeightFormat | None) -> str | None:
    """Why a checkpoint in the format that was ``found`` is not served; None where it is."""
    if found is None or (found.mxfp4 and architecture in _FROM_MXFP4):
        return None
    refused = method_problem(name, found.method)
    if refused is not None or found.method != COMPRESSED_TENSORS:
        return refused
    if found.extras:
        return (
            f"{name}: a compressed-tensors checkpoint with {' and '.join(found.extras)} is not supported {_HERE}: "
            f"{_SUPPORTED}. {_REMEDY}"
        )
    for group in found.groups:
        if not (group.w8a8 or group.w4a16 or group.w4a8):
            return f"{name}: {group.name} of compressed-tensors has {group}, not supported {_HERE}: {_SUPPORTED}. {_REMEDY}"
    if found.attention is not None and found.attention.w4a8:
        return (
            f"{name}: linear layers with {found.attention} ({found.attention.name} of compressed-tensors) are not supported "
            f"{_HERE}: experts alone are, of int4 weights beside int8 activations. Take a checkpoint whose attention is "
            "W8A8 or unquantised, or write one with a group of their own for the experts."
        )
    experts = found.experts
    if experts is not None and not (experts.w8a8_experts or experts.w4a16 or experts.w4a8):
        return (
            f"{name}: experts with {experts} ({experts.name} of compressed-tensors) are not supported {_HERE}: "
            "experts in W8A8 have weights per channel and dynamic activations per token. Leave the experts out of that "
            "group, or give them a group of their own, and quantise the model anew."
        )
    return None


_SUPPORTED = (
    "bfloat16 and float16 are, compressed-tensors in W8A8 (int8 weights per channel, int8 activations, symmetric), W4A16 "
    f"(packed symmetric int4 weights, per channel or in groups of a multiple of {WEIGHT_QUANT_GROUP_MULTIPLE}) and, of "
    "experts, W4A8 (symmetric int4 weights per channel, int8 activations per token), and ModelSlim's W8A8 and W4A8"
)
_REMEDY = (
    "Take such a checkpoint of this model, or write one from the unquantised one with llm-compressor (INT8_W8A8, W4A16) or "
    "msModelSlim."
)


def _group(name: str, group: Mapping[str, Any], stored: str) -> Group:
    inputs = group.get("input_activations")
    return Group(
        name=name,
        targets=tuple(group.get("targets") or ()),
        weights=Numbers.of(group["weights"]),
        inputs=None if not inputs else Numbers.of(inputs),
        outputs=bool(group.get("output_activations")),
        stored=str(group.get("format") or stored),
    )


def _of(modules: tuple[str, ...], groups: tuple[Group, ...], ignored: Any, layers: int) -> Group | None:
    """The group of the last layer's ``modules``: a name or pattern goes before a class, as vLLM has it."""
    names = [f"{parent}.{max(layers - 1, 0)}.{module}" for parent in _LAYERS for module in modules]
    if any(_matches(pattern, names) for pattern in ignored):
        return None
    named = [group for group in groups if any(_matches(target, names) for target in group.targets)]
    by_class = [group for group in groups if {"Linear", "RoutedExperts", "FusedMoE"} & set(group.targets)]
    return next(iter(named + by_class), None)


def _matches(pattern: str, names: list[str]) -> bool:
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name) for name in names)
    return pattern in names


def _extras(own: Mapping[str, Any]) -> list[str]:
    found = []
    if own.get("kv_cache_scheme"):
        found.append(f"a quantised KV cache (kv_cache_scheme: {Numbers.of(own['kv_cache_scheme'])})")
    if own.get("transform_config"):
        found.append("transforms of weights and activations (transform_config)")
    sparsity = own.get("sparsity_config") or {}
    if sparsity and sparsity.get("format") not in (None, "dense"):
        found.append(f"sparse weights (sparsity_config: {sparsity['format']})")
    return found
