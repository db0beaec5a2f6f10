# SPDX-License-Identifier: Apache-2.0
"""Linear layers of ModelSlim checkpoints compute the format's formulas, and name a tensor that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.installed import needs_modelslim
from tests.support.processes import result_of, under_virtual_npu

pytestmark = needs_modelslim

LAYER = "model.layers.1.self_attn"
REFUSED = {
    "missing": f"the checkpoint lacks {LAYER}.k_proj.deq_scale: ",
    "missing bias": f"the checkpoint lacks {LAYER}.v_proj.quant_bias: ",
    "shape": f"{LAYER}.q_proj.weight of the checkpoint has shape [64, 32], where [64, 64] is expected",
    "too long": f"{LAYER}.v_proj.deq_scale of the checkpoint has shape [64], where [32] is expected",
    "dtype": f"{LAYER}.k_proj.weight of the checkpoint is torch.float32, where its description promises int8",
    "fraction": f"{LAYER}.q_proj.input_offset of the checkpoint is 0.5, where a whole number from -128 to 127 is expected",
    "disagree": f"{LAYER}.v_proj.input_scale is 0.5: {LAYER}.qkv_proj is one layer in vLLM",
    "zero scale": f"{LAYER}.q_proj.input_scale, or that of a tensor loaded beside it, has values that are no positive",
    "asymmetric": f"{LAYER}.k_proj.weight_offset is not zero: weights that are quantised asymmetrically are not supported",
    "missing scale": f"the checkpoint lacks {LAYER}.k_proj.weight_scale: ",
    "bias": f"the checkpoint has {LAYER}.q_proj.bias, which this model's layers do not have",
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return result_of(under_virtual_npu("-m", "tests.npu.modelslim_layer"))


def test_layers_compute_what_the_format_says(found: dict[str, Any]) -> None:
    assert len(found["errors"]) == 24
    # Rounding of the result, and in float16 of the scale, of which the device keeps ten bits of mantissa.
    assert {name: error for name, error in found["errors"].items() if error > 2.5} == {}


def test_a_scale_is_read_in_either_encoding(found: dict[str, Any]) -> None:
    assert found["encodings"] == {"torch.float16": True, "torch.bfloat16": True}


def test_of_the_ranks_of_a_row_parallel_layer_one_adds_the_bias(found: dict[str, Any]) -> None:
    assert found["partial"] < 0.01


@pytest.mark.parametrize("case", REFUSED)
def test_a_tensor_that_does_not_fit_is_refused_by_its_name(case: str, found: dict[str, Any]) -> None:
    assert REFUSED[case] in found["refused"][case]
