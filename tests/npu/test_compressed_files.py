# SPDX-License-Identifier: Apache-2.0
"""A compressed-tensors checkpoint's files are looked at by their headers: a weight without its scale and a scale without its
weight name themselves and their file; layers that stay unquantised are left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_ascend_patch.core.compressed_files import compressed_problems, scheme
from vllm_ascend_patch.core.stored_tensors import INDEX, StoredTensorError, stored_tensors

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0.mlp.experts"
TENSORS: Tensors = {
    "model.embed_tokens.weight": torch.zeros(8, 4),
    "model.layers.0.mlp.gate.weight": torch.zeros(2, 4),
    "model.layers.0.self_attn.o_proj.weight": torch.zeros(4, 4, dtype=torch.bfloat16),
    f"{LAYER}.0.up_proj.weight": torch.zeros(6, 4, dtype=torch.int8),
    f"{LAYER}.0.up_proj.weight_scale": torch.ones(6, 1),
    f"{LAYER}.1.up_proj.weight": torch.zeros(6, 4, dtype=torch.int8),
    f"{LAYER}.1.up_proj.weight_scale": torch.ones(6, 1, dtype=torch.bfloat16),
    "model.layers.2.mlp.experts.0.up_proj.weight": torch.zeros(6, 4),  # a prediction layer's, beyond the model
}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
WEIGHTS = {**INT8, "strategy": "channel", "dynamic": False}
PER_TOKEN = {**INT8, "strategy": "token", "dynamic": True}
PER_TENSOR = {**INT8, "strategy": "tensor", "dynamic": False}


def config(ignore: list[str], weights: dict[str, Any] = WEIGHTS) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": PER_TOKEN}
    own = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ignore}
    return {"num_hidden_layers": 2, "quantization_config": own}


CHANNEL = config(["lm_head", "re:.*gate$"])


def found(folder: Path, change: Callable[[Tensors], Any] = lambda tensors: None, of: Any = CHANNEL) -> list[str]:
    tensors = dict(TENSORS)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return list(compressed_problems(of, stored_tensors(folder)))


def test_a_checkpoint_that_has_everything_is_taken(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{LAYER}.1.up_proj.weight_scale"),
            f"the checkpoint lacks {LAYER}.1.up_proj.weight_scale: F32 or BF16 or F16 [6, 1] is expected beside "
            f"{LAYER}.1.up_proj.weight in model.safetensors",
        ),
        (
            lambda t: t.pop(f"{LAYER}.1.up_proj.weight"),
            f"the checkpoint lacks {LAYER}.1.up_proj.weight: {LAYER}.1.up_proj.weight_scale is BF16 [6, 1] in "
            "model.safetensors, and is its scale",
        ),
        (
            lambda t: t.update({f"{LAYER}.0.up_proj.weight_scale": torch.ones(5, 1)}),
            f"{LAYER}.0.up_proj.weight_scale is F32 [5, 1] in model.safetensors, where F32 or BF16 or F16 [6, 1]",
        ),
        (
            lambda t: t.update({f"{LAYER}.0.up_proj.weight_scale": torch.ones(6, 1, dtype=torch.int8)}),
            f"{LAYER}.0.up_proj.weight_scale is I8 [6, 1] in model.safetensors, where F32",
        ),
        (
            lambda t: (
                t.update({f"{LAYER}.1.up_proj.weight": torch.zeros(6, 4)}),
                t.pop(f"{LAYER}.1.up_proj.weight_scale"),
            ),
            f"{LAYER}.1.up_proj.weight is F32 [6, 4] in model.safetensors, where I8 is expected",
        ),
    ],
)
def test_what_does_not_fit_names_itself_its_file_and_what_is_expected(
    change: Callable[[Tensors], Any], message: str, tmp_path: Path
) -> None:
    (problem,) = found(tmp_path, change)
    assert message in problem


@pytest.mark.parametrize("ignore", [f"{LAYER}.1.up_proj", r"re:.*experts\.1\..*", f"language_model.{LAYER}.1.up_proj"])
def test_what_is_listed_as_unquantised_may_be_float(ignore: str, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[f"{LAYER}.1.up_proj.weight"] = torch.zeros(6, 4)
        del tensors[f"{LAYER}.1.up_proj.weight_scale"]

    assert found(tmp_path, change, config([ignore])) == []


def test_a_scale_of_the_whole_tensor_is_one_value(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[f"{LAYER}.0.up_proj.weight_scale"] = torch.tensor(1.0)
        tensors[f"{LAYER}.1.up_proj.weight_scale"] = torch.ones(1)

    per_tensor = config([], {**WEIGHTS, "strategy": "tensor"})
    assert found(tmp_path, change, per_tensor) == []
    assert ["where F32 or BF16 or F16 [1] or [] is expected" in p for p in found(tmp_path, of=per_tensor)] == [True] * 2


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (PER_TOKEN, "compressed-tensors: int8 per channel weights, int8 per token activations"),
        (PER_TENSOR, "compressed-tensors: int8 per channel weights, int8 per tensor static activations"),
        (None, "compressed-tensors: int8 per channel weights, unquantised activations"),
    ],
)
def test_a_scheme_is_said_in_words(inputs: dict[str, Any] | None, words: str) -> None:
    assert scheme({"config_groups": {"a": {"weights": WEIGHTS, "input_activations": inputs}}}) == words


def indexed(folder: Path, files: dict[str, str]) -> None:
    for name in ("one", "two"):
        save_file({name: torch.ones(1), "both": torch.ones(1)}, folder / f"{name}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


def test_an_index_says_which_files_are_read(tmp_path: Path) -> None:
    indexed(tmp_path, {"one": "one.safetensors"})
    assert sorted(stored_tensors(tmp_path)) == ["both", "one"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"one": "one.safetensors", "three": "three.safetensors"},
            r"lists three\.safetensors, which is not in the folder",
        ),
        (
            {"one": "one.safetensors", "more": "one.safetensors"},
            r"says that more is in one\.safetensors, which has it not",
        ),
        (None, r"is damaged or not complete: it lists no tensors"),
    ],
)
def test_what_an_index_lists_and_files_do_not_have_is_named(files: Any, message: str, tmp_path: Path) -> None:
    indexed(tmp_path, files)
    with pytest.raises(StoredTensorError, match=rf"{INDEX} .*{message}|{INDEX} {message}"):
        stored_tensors(tmp_path)
