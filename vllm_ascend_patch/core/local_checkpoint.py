# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint in a folder is and whether its quantisation is served, by its small files and headers. Asked by ``plan``
and ``doctor``; what a start refuses besides is ``model_support.py``'s. No weight is read; no torch, no vLLM."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import compressed_files, modelslim
from .modelslim_files import file_problems
from .stored_tensors import StoredTensorError, stored_tensors

_EXPERT = re.compile(r"\.experts\.(\d+\.|gate_up_proj|down_proj)")


@dataclass(frozen=True)
class LocalCheckpoint:
    """One checkpoint.

    Attributes:
        what: its format, for people.
        int8_experts: what a ModelSlim description says; None for other formats, of which ``config.json`` tells.
        problems: with which messages a start would refuse the checkpoint.
        expert_bytes: of all routed experts in the files; None where they cannot be read.
        total_bytes: of all tensors, likewise.
        int4_experts: whether a ModelSlim description says that routed experts have int4 weights.
    """

    what: str
    int8_experts: bool | None = None
    problems: tuple[str, ...] = ()
    expert_bytes: int | None = None
    total_bytes: int | None = None
    int4_experts: bool = False


def look_at(model: str, config: Mapping[str, Any], drafts: bool = False) -> LocalCheckpoint | None:
    """The checkpoint in the folder ``model``; None where there is none.

    Args:
        config: the parsed ``config.json``.
        drafts: whether a drafter is asked for.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    own = config.get("quantization_config") or config.get("compression_config")
    what, int8_experts, int4_experts, compressed = "unquantised", None, False, False
    found: list[str] = []
    if own is not None:
        what = str(own.get("quant_method", "quantised by an unnamed method"))
        compressed = what == compressed_files.METHOD
        what = compressed_files.scheme(own) if compressed else what
    else:
        try:
            path = modelslim.find(model)
            if path is not None:
                description = modelslim.read(path)
                what, int8_experts = _words(description), description.int8_experts
                int4_experts = description.int4_experts
                found += modelslim.problems(description, drafts)
        except modelslim.ModelSlimError as error:
            what = "a damaged ModelSlim checkpoint"
            found.append(f"{error}.")
    if not any(folder.glob("*.safetensors")):
        return LocalCheckpoint(what, int8_experts, tuple(found), int4_experts=int4_experts)
    try:
        stored = stored_tensors(folder)
        if int8_experts is not None:
            found += [f"{problem}." for problem in file_problems(description, stored)]
        if compressed:
            found += [f"{problem}." for problem in compressed_files.compressed_problems(config, stored)]
    except StoredTensorError as error:
        return LocalCheckpoint(what, int8_experts, (*found, f"{error}."), int4_experts=int4_experts)
    experts = sum(tensor.bytes for name, tensor in stored.items() if _EXPERT.search(name))
    total = sum(tensor.bytes for tensor in stored.values())
    return LocalCheckpoint(what, int8_experts, tuple(found), experts, total, int4_experts)


def _words(description: modelslim.Description) -> str:
    counts = Counter(kind for name, kind in description.types.items() if name.endswith(".weight"))
    return "ModelSlim: " + ", ".join(f"{count} weights {kind}" for kind, count in sorted(counts.items()))
