# SPDX-License-Identifier: Apache-2.0
"""What a ModelSlim checkpoint says of itself: the quantisation type of each tensor, and whether it is served.

Reads ``quant_model_description.json`` alone (format AscendV1, msModelSlim's ``quantization_formats/ascendv1.md``). No torch,
no device, no vLLM; weights are not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METHOD = "ascend"
"""The name of the format as a vLLM option, which deployments on Ascend have in their command lines."""
FILE = "quant_model_description.json"
_OLDER = "quant_model_description_*.json"

FLOAT = "FLOAT"
STATIC = "W8A8"
DYNAMIC = "W8A8_DYNAMIC"
MIXED = "W8A8_MIX"
INT4 = "W4A8_DYNAMIC"
LINEAR_TYPES = (FLOAT, STATIC, DYNAMIC, MIXED)
EXPERT_TYPES = (FLOAT, DYNAMIC, MIXED, INT4)

# Where a model names its fused modules' shards, that is asked first.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
_DRAFT_BLOCK = ".mtp_block"
"""What vLLM's drafters put between a prediction layer's name in the checkpoint and its modules."""
_EXPERT = re.compile(r"^(?P<experts>.+)\.\d+\.[^.]+\.weight$")
_OF_EXPERT = re.compile(r"experts\.\d+\.[^.]+\.[^.]+$")

EXPORT = (
    "Export it anew with msModelSlim, with int8 weights (linear_quant: scope per_channel, symmetric) and int8 activations "
    "(per_token, or per_tensor for layers that are not experts), or take the unquantised checkpoint"
)

# Tensors that mean work which is not done here, whatever their type says.
_WORK = (
    (".weight_scale_second", "the scale of weights quantised per group"),
    (".div.mul_scale", "a smooth factor on activations (non_fusion_smooth_quant)"),
    ("left_trans", "a transform of activations (FlatQuant)"),
    ("right_trans", "a transform of activations (FlatQuant)"),
    ("clip_ratio", "a bound on activations (FlatQuant)"),
    (".kv_cache_scale", "a quantised KV cache (C8)"),
    (".kv_cache_offset", "a quantised KV cache (C8)"),
    (".module.bias", "a norm with a bias (an anti-outlier method)"),
    (".module.weight", "a norm with a bias (an anti-outlier method)"),
    ("norm.bias", "a norm with a bias (an anti-outlier method)"),
    ("layernorm.bias", "a norm with a bias (an anti-outlier method)"),
)
# Embeddings, output layers, routers, norms, what drafters merge with, and what MLA absorbs: no quantised layers in vLLM.
_FLOAT_ONLY = (
    "embed_tokens.weight",
    "lm_head.weight",
    "shared_head.head.weight",
    ".gate.weight",
    "_gate.weight",
    "norm.weight",
    "eh_proj.weight",
    "kv_b_proj.weight",
)
_WHOLE = {
    "kv_quant_type": "a quantised KV cache",
    "kv_cache_type": "a quantised KV cache",
    "fa_quant_type": "quantised attention",
    "reduce_quant_type": "quantised communication",
}
_HERE = "not supported on Ascend NPUs by this port"


class ModelSlimError(ValueError):
    """A description that cannot be read, or that describes what is not served."""


@dataclass(frozen=True)
class Description:
    """The types of a checkpoint's tensors, and what is said of the whole.

    Attributes:
        source: the file, for messages.
        types: tensor name -> type.
        metadata: everything that is no tensor.
        experts: prefix of a layer's experts -> type of their weights -> the first tensor that has it.
    """

    source: str
    types: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, content: Any) -> Description:
        """From the parsed file; ``ModelSlimError`` when it describes nothing."""
        items = content.items() if isinstance(content, dict) else ()
        types = {name: kind for name, kind in items if isinstance(kind, str) and "." in name}
        if not types:
            raise ModelSlimError(
                f"{source} is not a ModelSlim description: no tensor with its type is in it. Copy the file anew from the "
                "checkpoint's source"
            )
        return cls(source, types, {name: value for name, value in items if name not in types}, _by_experts(types))

    def renamed(self, rename: Callable[[dict[str, str]], dict[str, str]]) -> Description:
        """With the tensors' names as vLLM's model has them."""
        types = rename(dict(self.types))
        return Description(self.source, types, self.metadata, _by_experts(types))

    @property
    def int8_experts(self) -> bool:
        """Whether routed experts take int8 activations."""
        return any(kind in (DYNAMIC, MIXED, INT4) for kinds in self.experts.values() for kind in kinds)

    @property
    def int4_experts(self) -> bool:
        """Whether routed experts have int4 weights."""
        return any(INT4 in kinds for kinds in self.experts.values())

    @property
    def rotated(self) -> bool:
        """Whether hidden states are rotated (QuaRot)."""
        return "quarot" in json.dumps([self.metadata.get("metadata"), self.metadata.get("optional")]).lower()

    def linear_type(self, prefix: str, packed: Mapping[str, Sequence[str]]) -> str:
        """The type of the linear layer ``prefix``, whose shards must have one; ``packed`` has the model's fused modules."""
        names = self.names(prefix, packed)
        kinds = {name: self.types.get(f"{name}.weight") for name in names}
        missing = next((name for name, kind in kinds.items() if kind is None), None)
        if missing is not None:
            raise ModelSlimError(
                f"{self.source} does not have {missing}.weight, which the layer {prefix} needs: it belongs to another "
                "checkpoint, or is not complete"
            )
        return self._one(prefix, {str(kind): f"{name}.weight" for name, kind in kinds.items()}, LINEAR_TYPES)

    def expert_type(self, prefix: str) -> str:
        """The type of the experts ``prefix``, which must have one."""
        found = self.experts.get(_without_block(prefix))
        if found is None:
            raise ModelSlimError(
                f"{self.source} has no expert below {prefix}: it belongs to another checkpoint, or is not complete"
            )
        return self._one(prefix, found, EXPERT_TYPES)

    def names(self, prefix: str, packed: Mapping[str, Sequence[str]]) -> list[str]:
        """The checkpoint's modules that make up the layer ``prefix``: itself, or its shards."""
        prefix = _without_block(prefix)
        if f"{prefix}.weight" in self.types:
            return [prefix]
        path, _, last = prefix.rpartition(".")
        shards = packed.get(last) or FUSED.get(last) or (last,)
        return [f"{path}.{shard}" if path else shard for shard in shards]

    def _one(self, prefix: str, kinds: Mapping[str, str], supported: Sequence[str]) -> str:
        if len(kinds) > 1:
            parts = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
            raise ModelSlimError(
                f"{self.source}: {parts}, but {prefix} is one layer in vLLM, whose parts must have one type. Export the "
                "checkpoint with one type for them (msModelSlim: the include and exclude lists)"
            )
        ((kind, name),) = kinds.items()
        if kind not in supported:
            raise ModelSlimError(
                f"{self.source}: {name} is {kind}, which is {_HERE} there; supported: {', '.join(supported)}. {EXPORT}"
            )
        return kind


def find(model: str) -> Path | None:
    """The description in a checkpoint's folder; None where there is none, or no such folder."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    if (folder / FILE).is_file():
        return folder / FILE
    older = sorted(folder.glob(_OLDER))
    if len(older) > 1:
        names = ", ".join(path.name for path in older)
        raise ModelSlimError(f"{folder} has several ModelSlim descriptions ({names}): keep the one of these weights")
    return older[0] if older else None


def read(path: Path) -> Description:
    """``ModelSlimError`` for a file that is no description."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSlimError(f"{path} is not a readable ModelSlim description: {error}") from error
    return Description.of(str(path), content)


def problems(description: Description, drafts: bool = False) -> Iterator[str]:
    """What of a checkpoint is not served: the tensor and type found, what is supported, and what to do.

    Args:
        description: of the whole checkpoint.
        drafts: whether a drafter reads the model's hidden states.
    """
    source = description.source
    for key, what in _WHOLE.items():
        value = description.metadata.get(key)
        if value and value != FLOAT:
            yield f"{source}: {key} is {value}, {what}, which is {_HERE}. Export it without. {EXPORT}."
    for suffix, what in _WORK:
        found = next((name for name in description.types if name.endswith(suffix)), None)
        if found is not None:
            yield f"{source}: {found} is {what}, which is {_HERE}. Export it without. {EXPORT}."
    group = description.metadata.get("group_size")
    if description.int4_experts and group:
        yield f"{source}: group_size is {group}, weights quantised per group, which is {_HERE}; supported: 0. {EXPORT}."
    seen: dict[str, str] = {}
    for name, kind in description.types.items():
        if kind not in (EXPERT_TYPES if _OF_EXPERT.search(name) else LINEAR_TYPES) and kind != STATIC:
            seen.setdefault(kind, name)
    for kind, name in seen.items():
        yield f"{source}: {name} is {kind}, which is {_HERE}; supported: {', '.join(LINEAR_TYPES)}. {EXPORT}."
    for kinds in description.experts.values():
        if STATIC in kinds:
            yield (
                f"{source}: the expert's {kinds[STATIC]} is {STATIC}, static activations, which is {_HERE} for experts; "
                f"supported there: {', '.join(EXPERT_TYPES)}. {EXPORT}."
            )
            break
    for name, kind in description.types.items():
        if name.endswith(_FLOAT_ONLY) and kind != FLOAT:
            yield f"{source}: {name} is {kind}; vLLM computes that in float: only {FLOAT} is supported there. {EXPORT}."
            break
    if drafts and description.rotated:
        yield (
            f"{source}: hidden states are rotated (QuaRot), and drafters over rotated hidden states are {_HERE}: start "
            "without --speculative-config, or export without QuaRot."
        )


def _by_experts(types: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, kind in types.items():
        match = _EXPERT.match(name)
        if match and match["experts"].endswith("experts"):
            found.setdefault(match["experts"], {}).setdefault(kind, name)
    return found


def _without_block(prefix: str) -> str:
    return prefix.replace(f"{_DRAFT_BLOCK}.", ".").removesuffix(_DRAFT_BLOCK)
