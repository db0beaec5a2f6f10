# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's files are compared with its description by their headers: what does not fit names itself and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_ascend_patch.core.modelslim import Description
from vllm_ascend_patch.core.modelslim_files import file_problems
from vllm_ascend_patch.core.stored_tensors import StoredTensor, StoredTensorError, stored_tensors

Tensors = dict[str, torch.Tensor]
TENSORS: Tensors = {
    "a.weight": torch.zeros(6, 4, dtype=torch.int8),
    "a.input_scale": torch.ones(1),
    "a.input_offset": torch.zeros(1),
    "a.deq_scale": torch.ones(6, dtype=torch.int64),
    "a.quant_bias": torch.zeros(6, dtype=torch.int32),
    "b.weight": torch.zeros(2, 4, dtype=torch.int8),
    "b.weight_scale": torch.ones(2, 1),
    "b.weight_offset": torch.zeros(2, 1),
    "c.weight": torch.zeros(3, 3, dtype=torch.bfloat16),
}
TYPES = {"a": "W8A8", "b": "W8A8_DYNAMIC", "c": "FLOAT"}


def found(folder: Path, change: Callable[[Tensors], Any] = lambda tensors: None) -> list[str]:
    tensors = dict(TENSORS)
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")
    types = {name: TYPES[name[0]] for name in TENSORS if name in TENSORS}
    return list(file_problems(Description.of("FILE", types), stored_tensors(folder)))


def test_headers_tell_dtype_shape_and_size(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    stored = stored_tensors(tmp_path)
    assert stored["a.weight"] == StoredTensor("weights.safetensors", "I8", (6, 4))
    assert {name: tensor.bytes for name, tensor in stored.items()} == {
        name: tensor.numel() * tensor.element_size() for name, tensor in TENSORS.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("c.weight"), "FILE lists c.weight, which no file of the checkpoint has"),
        (
            lambda t: t.update({"d.weight": torch.ones(1)}),
            "weights.safetensors has d.weight, of which FILE does not say",
        ),
        (
            lambda t: t.update({"a.weight": torch.zeros(6, 4)}),
            "a.weight is F32 [6, 4] in weights.safetensors, where I8 [outputs, inputs] is expected, since FILE says W8A8",
        ),
        (
            lambda t: t.update({"a.deq_scale": torch.ones(5)}),
            "a.deq_scale is F32 [5] in weights.safetensors, where F32 or BF16 or F16 or I64 [6] is expected beside a.weight",
        ),
        (
            lambda t: t.update({"a.quant_bias": torch.ones(6)}),
            "a.quant_bias is F32 [6] in weights.safetensors, where I32 [6] is expected",
        ),
        (
            lambda t: t.update({"b.weight_scale": torch.ones(2, 2)}),
            "b.weight_scale is F32 [2, 2] in weights.safetensors, where F32 or BF16 or F16 [2, 1] is expected",
        ),
    ],
)
def test_what_does_not_fit_names_itself_its_file_and_what_is_expected(
    change: Callable[[Tensors], Any], message: str, tmp_path: Path
) -> None:
    assert any(message in problem for problem in found(tmp_path, change))


def test_a_scale_that_nobody_lists_is_missed_all_the_same(tmp_path: Path) -> None:
    save_file({"b.weight": TENSORS["b.weight"]}, tmp_path / "weights.safetensors")
    (problem,) = file_problems(Description.of("FILE", {"b.weight": "W8A8_DYNAMIC"}), stored_tensors(tmp_path))
    assert problem.startswith(
        "the checkpoint lacks b.weight_scale: F32 or BF16 or F16 [2, 1] is expected beside b.weight"
    )


def int4(**changes: torch.Tensor) -> Tensors:
    tensors: Tensors = {}
    for name in ("up_proj", "down_proj"):
        own = {"weight": torch.zeros(3, 32, dtype=torch.int8), "weight_scale": torch.ones(6, 1)}
        own["scale_bias"] = torch.zeros(6, 16 if name == "down_proj" else 1)
        tensors |= {f"experts.0.{name}.{key}": tensor for key, tensor in own.items()}
    return tensors | {f"experts.0.down_proj.{key}": tensor for key, tensor in changes.items()}


def test_int4_weights_have_two_outputs_in_a_byte_and_partial_sums_where_ranks_share_inputs(tmp_path: Path) -> None:
    wrong = "experts.0.down_proj.scale_bias is F32 [6, 1] in weights.safetensors, where F32 [6, 16] is expected"
    for changes, message in (({}, None), ({"scale_bias": torch.zeros(6, 1)}, wrong)):
        save_file(int4(**changes), tmp_path / "weights.safetensors")
        description = Description.of("FILE", dict.fromkeys(int4(), "W4A8_DYNAMIC"))
        problems = list(file_problems(description, stored_tensors(tmp_path)))
        assert [problem.startswith(message or "") for problem in problems] == [True] * (message is not None)


def damaged(path: Path, change: Callable[[bytes], bytes]) -> None:
    save_file(TENSORS, path)
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-3], "its tensors end at byte"),
        (lambda data: data + b"1", "its tensors end at byte"),
        (lambda data: data[:20], "its header would have"),
        (lambda data: b"", "its header would have 0 bytes"),
        (lambda data: data[:8] + b"x" + data[9:], "its header cannot be read"),
        (lambda data: data.replace(b'"shape":[6,4]', b'"shape":[6,5]'), "a.weight has another size than its shape"),
    ],
)
def test_a_damaged_file_is_named(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    damaged(tmp_path / "weights.safetensors", change)
    with pytest.raises(StoredTensorError) as error:
        stored_tensors(tmp_path)
    assert "weights.safetensors is damaged or not complete: " in str(error.value)
    assert message in str(error.value)


def test_a_tensor_in_two_files_and_a_folder_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoredTensorError, match="has no safetensors file"):
        stored_tensors(tmp_path)
    for name in ("one", "two"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "description.json").write_text(json.dumps({}))
    with pytest.raises(StoredTensorError, match=r"a is in one.safetensors and in two.safetensors"):
        stored_tensors(tmp_path)
