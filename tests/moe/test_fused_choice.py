# SPDX-License-Identifier: Apache-2.0
"""When int8 experts run through the operator that multiplies, applies SwiGLU and quantises: the rule, and its reasons."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_ascend_patch.core.moe.fused_choice import FusedFacts, choose

# Qwen3-235B-A22B with whole experts.
FACTS = FusedFacts(4096, 1536, "silu", plain_swiglu=True, balanced=False, gives_nz=True)


@pytest.mark.parametrize(
    "sizes", [(7168, 2048), (2048, 768), (4096, 1408 // 4), (65504, 5120), (32, 32)], ids=lambda sizes: str(sizes)
)
def test_experts_of_plain_swiglu_within_the_operators_sizes_are_fused(sizes: tuple[int, int]) -> None:
    hidden, intermediate = sizes
    choice = choose(FACTS._replace(hidden_size=hidden, intermediate_size=intermediate))
    assert choice == (True, f"hidden size {hidden}, intermediate size {intermediate} per rank")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"balanced": True}, "load balancing moves an expert's part of the weights in place"),
        (
            {"plain_swiglu": False, "activation": "swigluoai"},
            "the activation is swigluoai, the operator's is SwiGLU without limits",
        ),
        (
            {"intermediate_size": 5152},
            "hidden size 4096, intermediate size 5152 per rank, the operator takes at most 65535 and 5120",
        ),
        (
            {"hidden_size": 65536},
            "hidden size 65536, intermediate size 1536 per rank, the operator takes at most 65535 and 5120",
        ),
        (
            {"intermediate_size": 1408 // 8},
            "hidden size 4096, intermediate size 176 per rank, which are not whole tiles of 32",
        ),
        ({"hidden_size": 4112}, "hidden size 4112, intermediate size 1536 per rank, which are not whole tiles of 32"),
        ({"gives_nz": False}, "this device and torch_npu have no FRACTAL_NZ"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_others_stay_with_two_operators_and_the_reason_says_why(change: dict[str, Any], reason: str) -> None:
    assert choose(FACTS._replace(**change)) == (False, reason)
