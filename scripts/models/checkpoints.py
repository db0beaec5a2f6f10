# SPDX-License-Identifier: Apache-2.0
"""Writes a family's tiny checkpoint: one as the hub would have it, for vLLM, and one for transformers. On the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .families import Family

MODEL, REFERENCE = "model", "reference"
_CLASS = """from transformers import PretrainedConfig


class Configuration(PretrainedConfig):
    model_type = {model_type!r}
"""


def make(family: Family, folder: Path) -> None:
    """Write ``folder/model`` and ``folder/reference`` unless they are there; ``model`` is complete when it exists."""
    if (folder / MODEL).exists():
        return
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    if family.config:
        _write_reference(family, folder / REFERENCE)
        shutil.copytree(folder / REFERENCE, unfinished)
        written = json.loads((unfinished / "config.json").read_text())
    else:
        unfinished.mkdir()
        written = dict(family.values) | {"dtype": family.dtype}
    if family.rename is not None:
        _rename(family, unfinished)
    if family.files is not None:
        family.files(unfinished)
    written = {key: value for key, value in written.items() if key not in family.without}
    written |= {"architectures": [family.architectures[0]]} | dict(family.edits)
    if family.own_configuration:
        written["auto_map"] = {"AutoConfig": "configuration.Configuration"}
        (unfinished / "configuration.py").write_text(_CLASS.format(model_type=written["model_type"]))
    (unfinished / "config.json").write_text(json.dumps(written, indent=1))
    unfinished.rename(folder / MODEL)


def _write_reference(family: Family, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = configuration(family)
    torch.manual_seed(7)
    model = reference_class(family)(config) if family.model else AutoModelForCausalLM.from_config(config)
    model = model.float()
    _randomise(model, family.query_norm)
    if family.prepare is not None:
        family.prepare(model)
    model.to(getattr(torch, family.dtype)).save_pretrained(folder)


def configuration(family: Family) -> Any:
    """The family's configuration; an AttributeError where the installed transformers has no class for it."""
    import transformers

    return getattr(transformers, family.config)(**{k: v for k, v in family.values.items() if v is not None or _kept(k)})


def _kept(key: str) -> bool:
    """Keys whose None means something; of others it stands for transformers' default."""
    return key != "rope_parameters"


def reference_class(family: Family) -> Any:
    """transformers' class of the reference."""
    import transformers

    return getattr(transformers, family.model or "AutoModelForCausalLM")


def _rename(family: Family, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert family.rename is not None
    file = folder / "model.safetensors"
    save_file(family.rename(load_file(file)), file, metadata={"format": "pt"})


def _randomise(model: Any, query_norm: float) -> None:
    """Weights that keep activations of size 1 or so, clear routers, and biases and norms that matter."""
    import torch

    generator = torch.Generator().manual_seed(11)
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    tensors = [*model.named_parameters(), *((name, part) for name, part in model.named_buffers() if "bias" in name)]
    seen: set[int] = set()
    with torch.no_grad():
        for name, weight in tensors:
            if weight.data_ptr() in seen or not weight.is_floating_point():
                continue
            seen.add(weight.data_ptr())
            drawn = torch.randn(weight.shape, generator=generator)
            if name.endswith(("A_log", "dt_bias", ".D", "dt_proj.bias")):  # of state layers, whose own start is kept
                weight.add_(0.1 * drawn)
            elif weight.dim() > 1 and ("embed" in name or "wte" in name):
                weight.copy_(drawn * (0.15 if tied else 1.0))  # tied and larger, a token would only repeat itself
            elif weight.dim() > 1:
                weight.copy_(drawn * _gain(name) * weight.shape[-1] ** -0.5)
            elif "sink" in name:
                weight.copy_(drawn)
            elif "bias" in name:
                weight.copy_(drawn * 0.2)
            else:
                weight.add_(0.2 * drawn).mul_(query_norm if name.endswith("q_norm.weight") else 1.0)


def _gain(name: str) -> float:
    if "lm_head" in name:
        return 3.0
    return 2.0 if ("gate." in name or "router" in name) and "experts" not in name else 1.0
