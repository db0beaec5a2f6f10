# SPDX-License-Identifier: Apache-2.0
"""Refuses a checkpoint that lacks a tensor of a layer that upstream's own check leaves out: linear layers and embeddings
without quantisation, and in a quantised model everything without quantisation.

Each tensor's first row is marked before the checkpoint is read and looked for afterwards (``core/weights.py``). Layers whose
weights are ours are marked as they are made (``seams/checkpoint.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vllm_ascend_patch.core import weights
from vllm_ascend_patch.seams.checkpoint import lacks, owner_of


@dataclass(frozen=True)
class _Watched:
    """One parameter: ``data`` is ``[1, R, C]``, ``rows`` are where its tensors begin, ``before`` is what these held."""

    names: tuple[str, ...]
    data: torch.Tensor
    rows: tuple[int, ...]
    before: torch.Tensor

    def missing(self) -> list[int]:
        return [part for _, part in weights.unwritten(self.data, self.rows)]


def load_weights(original: Callable[..., Any], loader: Any, model: Any, model_config: Any, **kwargs: Any) -> Any:
    """Upstream's loading of a checkpoint; ``ValueError`` for tensors that it did not bring.

    What was not loaded is as before then: releases without reloading by layer load into running weights.
    """
    watched = list(_watch(model, model_config))
    try:
        result = original(loader, model, model_config, **kwargs)
    finally:
        missing = [(one, part) for one in watched for part in one.missing()]
        for one, part in missing:
            one.data[0, one.rows[part]] = one.before[part]
    if missing:
        raise lacks([one.names[part] for one, part in missing])
    return result


def _watch(model: Any, model_config: Any) -> Iterator[_Watched]:
    """Mark the parameters that have to come from the checkpoint."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    packed = {last: parts for module in model.modules() for last, parts in _packed(module).items()}
    drafter = model_config.runner_type == "draft"
    seen = set()
    for path, layer in model.named_modules():
        if not _has_to_be_loaded(layer) or (drafter and isinstance(layer, VocabParallelEmbedding)):
            continue  # a drafter may have its model's embeddings, which it is given after loading
        for name, parameter in layer.named_parameters(recurse=False):
            data = _as_rows(parameter)
            if data is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            rows = tuple(_first_rows(layer, data.shape[1]))
            before = data[0, list(rows)].clone()
            weights.mark(data, rows)
            yield _Watched(tuple(_names(path, name, packed, len(rows))), data, rows, before)


def _has_to_be_loaded(layer: Any) -> bool:
    """Whether nothing but a checkpoint gives the layer's parameters: not so for scales, which have defaults."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    method = getattr(layer, "quant_method", None)
    return owner_of(layer) is None and isinstance(
        method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod | type(None)
    )


def _as_rows(parameter: torch.Tensor) -> torch.Tensor | None:
    """``[1, R, C]``, a view of a parameter; None where there is none that can be marked."""
    data = parameter.data
    if data.is_meta or not data.is_floating_point() or data.dim() == 0 or 0 in data.shape or not data.is_contiguous():
        return None
    return data.view(1, data.shape[0], -1)


def _first_rows(layer: Any, rows: int) -> Iterator[int]:
    """The row that each tensor begins at: what is merged, as query, key and value are, lies above each other."""
    widths = getattr(layer, "output_partition_sizes", ())
    if sum(widths) != rows:
        widths = (rows,)
    starts = itertools.accumulate(widths, initial=0)
    return (start for start, width in zip(starts, widths, strict=False) if width)


def _names(path: str, name: str, packed: dict[str, list[str]], parts: int) -> Iterator[str]:
    """How the checkpoint calls the tensors, as far as vLLM's model tells."""
    before, _, last = path.rpartition(".")
    known = packed.get(last, [])
    for part in range(parts):
        if len(known) == parts:
            yield f"{before}.{known[part]}.{name}"
        else:
            yield f"{path}.{name}" + (f" (part {part})" if parts > 1 else "")


def _packed(module: Any) -> dict[str, list[str]]:
    found = getattr(module, "packed_modules_mapping", None)
    return found if isinstance(found, dict) else {}
