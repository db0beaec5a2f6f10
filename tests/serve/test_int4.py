# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors checkpoints with packed int4 weights (W4A16) answer as transformers does with the same weights
dequantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import int4_models, tiny_models
from tests.support.installed import needs_modelslim

from .scripts import chosen, job_for

# Served from the same release on as ModelSlim's checkpoints.
pytestmark = [pytest.mark.serve, pytest.mark.timeout(900), needs_modelslim]


@pytest.mark.parametrize(
    ("family", "group_size", "attention", "changes"),
    [
        ("mixtral", 32, True, {}),
        pytest.param("mixtral", 32, True, {"enforce_eager": False}, marks=pytest.mark.slow),
        pytest.param("mixtral", 0, True, {}, marks=pytest.mark.slow),
        # shared experts, and biases of query, key and value
        pytest.param("qwen2_moe", 32, True, {}, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", 32, False, {}, marks=pytest.mark.slow),
    ],
)
def test_tokens_equal_transformers_with_the_dequantised_weights(
    family: str,
    group_size: int,
    attention: bool,
    changes: dict[str, Any],
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    checkpoint, twin = int4_models.make(checkpoints(family), tmp_path, group_size, attention)
    cases = tiny_models.cases(twin)
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS, dp=1, arguments=changes or None)
    result = run_engine(job | {"ep": False}, devices=1)
    assert result["tokens"] == [case.answer for case in cases]
    assert result["again"] == result["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
def test_ranks_with_slices_of_the_layers_answer_alike(
    graphs: bool, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint, twin = int4_models.make(checkpoints("mixtral"), tmp_path)
    cases = tiny_models.cases(twin)
    prompts, options = [case.prompt for case in cases], {"enforce_eager": not graphs}
    job = job_for(checkpoint, prompts, tiny_models.NEW_TOKENS, tp=2, dp=1, arguments=options)
    result = run_engine(job | {"ep": False}, devices=2)
    assert result["tokens"] == [case.answer for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "graphs"), [("allgather", False), ("mc2", False), ("alltoall", False), ("mc2", True)]
)
def test_ranks_with_experts_of_their_own_answer_alike(
    method: str, graphs: bool, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint, twin = int4_models.make(checkpoints("qwen3_moe"), tmp_path)
    cases = tiny_models.cases(twin)
    prompts, options = [case.prompt for case in cases], {"enforce_eager": not graphs}
    job = job_for(checkpoint, prompts, tiny_models.NEW_TOKENS, dp=2, arguments=options)
    result = run_engine(job, devices=2, VLLM_ASCEND_PATCH_MOE_COMM=method)
    assert result["together"] == [case.answer for case in cases]
    assert chosen(result["log"]) == {method}
