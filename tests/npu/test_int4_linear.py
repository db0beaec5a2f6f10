# SPDX-License-Identifier: Apache-2.0
"""Linear layers with packed int4 weights compute with what was loaded last, and name a tensor that was not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.installed import needs_modelslim
from tests.support.int4_models import packed
from tests.support.processes import result_of, under_virtual_npu
from vllm_ascend_patch.core.packed_int4 import group_scales, to_signed
from vllm_ascend_patch.virtual_npu.kernels.packed_int4 import matrices

LAYER = "model.layers.1.self_attn"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return result_of(under_virtual_npu("-m", "tests.npu.int4_layer"))


def test_a_checkpoints_words_become_the_operators() -> None:
    integers = torch.arange(-8, 8).repeat(3, 1)
    words = to_signed(packed(integers))
    assert torch.equal(matrices("npu_x", words.t()), integers.t())
    assert torch.equal(to_signed(words), packed(integers))


def test_words_are_packed_as_compressed_tensors_does() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    integers = torch.randint(-8, 8, (5, 64), generator=torch.Generator().manual_seed(7))
    assert torch.equal(packed(integers), helpers.pack_to_int32(integers.to(torch.int8), 4))


def test_scales_lie_as_the_operators_take_them() -> None:
    scales = group_scales(torch.zeros(2, 5, 3, dtype=torch.bfloat16))
    assert (scales.shape, scales.dtype) == ((2, 5, 3), torch.bfloat16)
    assert scales.mT.is_contiguous()


@needs_modelslim
def test_a_layer_follows_what_is_loaded_into_it(found: dict[str, Any]) -> None:
    assert len(found["errors"]) == 8
    # One rounding of the result, and of each weight.
    assert {case: errors for case, errors in found["errors"].items() if len(errors) != 2 or max(errors) > 2} == {}


@needs_modelslim
def test_what_was_not_loaded_names_itself(found: dict[str, Any]) -> None:
    assert f"the checkpoint lacks {LAYER}.k_proj.weight_packed: " in found["refused"]["k.weight_packed"]
    assert f"the checkpoint lacks {LAYER}.v_proj.weight_scale: " in found["refused"]["v.weight_scale"]
    assert "only symmetric int4 weights are supported on Ascend NPUs by this port" in found["asymmetric"]
    assert "of int4 weights beside int8 activations (W4A8) experts alone are supported on Ascend NPUs" in found["w4a8"]
