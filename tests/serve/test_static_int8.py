# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors W8A8 checkpoints with static activations of linear layers answer as their formulas do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import modelslim_models, static_w8a8_models
from tests.support.installed import needs_int8_experts

from .scripts import job_for

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900), needs_int8_experts]

TOKENS = 4
LENGTHS = (1, 5, 19, 33, 64, 150)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "clip", "tp", "graphs"),
    [
        ("qwen3_moe", 0.9, 1, False),  # some activations are beyond int8
        ("qwen2_moe", 1.0, 1, True),  # shared experts, and biases of query, key and value
        ("qwen3_moe", 1.0, 2, False),
    ],
)
def test_tokens_equal_those_of_the_checkpoints_integers(
    family: str,
    clip: float,
    tp: int,
    graphs: bool,
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    dense = checkpoints(family)
    checkpoint = static_w8a8_models.make(dense, tmp_path, clip)
    oracle = static_w8a8_models.oracle(dense, checkpoint)
    cases = modelslim_models.clear_cases(oracle, LENGTHS, TOKENS)
    job = job_for(
        checkpoint, [case.prompt for case in cases], TOKENS, tp=tp, dp=1, arguments={"enforce_eager": not graphs}
    )
    result = run_engine(job | {"ep": False}, devices=tp)
    assert result["tokens"] == [case.answer for case in cases]
    assert result["again"] == result["tokens"]
