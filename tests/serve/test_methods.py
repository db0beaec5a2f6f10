# SPDX-License-Identifier: Apache-2.0
"""Whatever way tokens travel to their experts, forced or chosen per step, the tokens that come out are transformers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models, w8a8_models
from tests.support.installed import needs_int8_experts, needs_runner_v2

from .scripts import ALSO_ON_V2, RUNNERS, chosen, job_for, refused

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]


METHODS = ("allgather", "mc2", "alltoall")
LAYOUTS = [(1, 2), (2, 1), (2, 2)]  # TP, DP
QUICK = {("alltoall", 1, 2, "A2")}  # the others take minutes together; MC2 and AllGather are the A3 test below


@pytest.mark.parametrize(
    ("method", "tp", "dp", "soc", "runner"),
    [
        pytest.param(method, tp, dp, soc, "V1", marks=[] if (method, tp, dp, soc) in QUICK else pytest.mark.slow)
        for method in METHODS
        for tp, dp in LAYOUTS
        for soc in ("A2", "A3")
    ]
    + [
        pytest.param(method, tp, dp, "A3", "V2", marks=[needs_runner_v2, pytest.mark.slow])
        for method in METHODS
        for tp, dp in LAYOUTS
    ],
)
def test_a_forced_method_gives_the_oracles_tokens(
    method: str,
    tp: int,
    dp: int,
    soc: str,
    runner: str,
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
) -> None:
    checkpoint = checkpoints("qwen2_moe_wide" if soc == "A3" else "qwen2_moe")  # both have shared experts
    cases = tiny_models.cases(checkpoint)
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS, tp, dp)
    result = run_engine(job, devices=tp * dp, soc=soc, VLLM_ASCEND_PATCH_MOE_COMM=method, **RUNNERS[runner])
    assert result["together" if dp > 1 else "tokens"] == [case.answer for case in cases]
    assert chosen(result["log"]) == {method}


@pytest.mark.slow  # graphs on A3 change it, too (test_graphs.py)
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_the_method_changes_between_prompt_and_decoding_on_a3(
    runner: str, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("mixtral_wide")
    cases = tiny_models.cases(checkpoint)
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS)
    result = run_engine(job, devices=2, soc="A3", **RUNNERS[runner])
    assert result["together"] == [case.answer for case in cases]
    assert result["late"] == [case.answer for case in cases]
    assert chosen(result["log"]) == {"mc2", "allgather"}


@needs_int8_experts
@pytest.mark.parametrize(
    ("dp", "method"),
    [
        (1, "auto"),
        pytest.param(2, "allgather", marks=pytest.mark.slow),
        pytest.param(2, "mc2", marks=pytest.mark.slow),
        pytest.param(2, "alltoall", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_int8_weights_and_activations_keep_every_clear_choice_of_the_dequantised_model(
    dp: int,
    method: str,
    runner: str,
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    quantised, twin = w8a8_models.make(checkpoints("mixtral"), tmp_path)
    cases = w8a8_models.first_token_cases(twin, 16)
    job = job_for(quantised, [case.prompt for case in cases], 1, dp=dp)
    result = run_engine(job | {"ep": dp > 1}, devices=dp, VLLM_ASCEND_PATCH_MOE_COMM=method, **RUNNERS[runner])
    assert result["together" if dp > 1 else "tokens"] == [case.answer for case in cases]


@pytest.mark.parametrize(
    ("soc", "dp", "environment", "message"),
    [
        pytest.param(
            "A3",  # hidden size 64; the operators take 1024 and more there
            1,
            {"VLLM_ASCEND_PATCH_MOE_COMM": "mc2"},
            "the MoE communication method mc2 was forced, but hidden size on A3 (operators v2) is 64, 1024..8192 is "
            "supported: use the allgather or alltoall method",
            id="limit",
        ),
        pytest.param(
            "A2",
            2,
            {"VLLM_ASCEND_PATCH_MOE_COMM": "mc2", "HCCL_BUFFSIZE": "1"},
            "the MoE communication method mc2 was forced for up to 128 tokens per rank, but HCCL_BUFFSIZE=1 holds 0: "
            "set HCCL_BUFFSIZE=5 (MiB) on all ranks",
            id="window",
        ),
    ],
)
def test_what_a_method_cannot_do_is_the_last_thing_said_and_no_process_is_started_for_it(
    soc: str,
    dp: int,
    environment: dict[str, str],
    message: str,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    tp = 2 // dp
    output = refused(
        checkpoints("mixtral"), tmp_path, devices=2, tp=tp, dp=dp, ep=True, soc=soc, environment=environment
    )
    assert message in output[-1200:]
    assert output.count(message) == 1
    assert "EngineCore" not in output
    assert "Worker_" not in output
