# SPDX-License-Identifier: Apache-2.0
"""Whatever way tokens travel to their experts, forced or chosen per step, the tokens that come out are transformers'."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import tiny_models, w8a8_models

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]


def job_for(checkpoint: Path, prompts: list[list[int]], max_tokens: int, tp: int = 1, dp: int = 2) -> dict[str, Any]:
    return {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": True,
        "prompts": prompts,
        "max_tokens": max_tokens,
        "many": 10,
    }


def chosen(log: str) -> set[str]:
    """The methods that the workers said they use."""
    return set(re.findall(r"MoE communication: (\w+) for", log))


@pytest.mark.parametrize(
    ("method", "tp", "dp"),
    [
        ("mc2", 2, 1),
        pytest.param("mc2", 1, 2, marks=pytest.mark.slow),
        pytest.param("mc2", 2, 2, marks=pytest.mark.slow),
        ("alltoall", 1, 2),
        pytest.param("alltoall", 2, 1, marks=pytest.mark.slow),
        pytest.param("alltoall", 2, 2, marks=pytest.mark.slow),
        pytest.param("allgather", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_forced_method_gives_the_oracles_tokens(
    method: str, tp: int, dp: int, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("qwen2_moe")  # has shared experts
    cases = tiny_models.cases(checkpoint)
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS, tp, dp)
    result = run_engine(job, devices=tp * dp, VLLM_ASCEND_PATCH_MOE_COMM=method)
    assert result["together" if dp > 1 else "tokens"] == [case.answer for case in cases]
    assert chosen(result["log"]) == {method}


def test_the_method_changes_between_prompt_and_decoding_on_a3(
    checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("mixtral_wide")
    cases = tiny_models.cases(checkpoint)
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS)
    result = run_engine(job, devices=2, soc="A3")
    assert result["together"] == [case.answer for case in cases]
    assert result["late"] == [case.answer for case in cases]
    assert chosen(result["log"]) == {"mc2", "alltoall"}


@pytest.mark.parametrize(("dp", "method"), [(1, "auto"), pytest.param(2, "mc2", marks=pytest.mark.slow)])
def test_int8_weights_and_activations_keep_every_clear_choice_of_the_dequantised_model(
    dp: int, method: str, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    quantised, twin = w8a8_models.make(checkpoints("mixtral"), tmp_path)
    cases = w8a8_models.first_token_cases(twin, 16)
    job = job_for(quantised, [case.prompt for case in cases], 1, dp=dp)
    result = run_engine(job | {"ep": dp > 1}, devices=dp, VLLM_ASCEND_PATCH_MOE_COMM=method)
    assert result["together" if dp > 1 else "tokens"] == [case.answer for case in cases]


def test_a_forced_method_that_breaks_a_limit_is_refused_with_the_limit(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    from .test_refusals import refused

    output = refused(  # hidden size 64; the operators take 1024 and more on A3
        checkpoints("mixtral"),
        tmp_path,
        devices=2,
        tp=2,
        ep=True,
        soc="A3",
        environment={"VLLM_ASCEND_PATCH_MOE_COMM": "mc2"},
    )
    assert "the MoE communication method mc2 was forced, but hidden size on A3 (operators v2) is 64" in output


def test_an_hccl_window_that_is_too_small_is_refused_with_the_size_to_set(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    from .test_refusals import refused

    output = refused(
        checkpoints("mixtral"),
        tmp_path,
        devices=2,
        tp=2,
        ep=True,
        environment={"VLLM_ASCEND_PATCH_MOE_COMM": "mc2", "HCCL_BUFFSIZE": "1"},
    )
    assert re.search(r"set HCCL_BUFFSIZE=\d+ \(MiB\)", output)
