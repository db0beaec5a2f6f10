# SPDX-License-Identifier: Apache-2.0
"""W8A8 linear layers compute with what their parameters hold at that moment, in the checkpoint's layout."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.installed import needs_int8_experts
from tests.support.processes import result_of, under_virtual_npu


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return result_of(under_virtual_npu("-m", "tests.npu.int8_layer"))


@needs_int8_experts
def test_a_layer_follows_what_is_written_into_its_parameters(found: dict[str, Any]) -> None:
    for scales in ("channel", "tensor"):
        assert len(found[scales]) == 2, "the parameters stay where they are"
        assert max(found[scales]) < 0.03, scales  # rounding of activations to int8


@needs_int8_experts
def test_static_scales_of_activations_count_as_they_are_and_values_beyond_are_cut(found: dict[str, Any]) -> None:
    for scales in ("static", "both"):
        assert len(found[scales]) == 2, "the parameters stay where they are"
        assert max(found[scales]) < 2**-8, scales  # rounding of the result to bfloat16
