# SPDX-License-Identifier: Apache-2.0
"""Expert load balancing while serving: tokens stay the oracle's while vLLM moves experts between ranks, in every method."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.installed import needs_runner_v2

from .scripts import RUNNERS, chosen, job_for, refused, runs
from .traces import traced_workers

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

EPLB = {"eplb_config": {"num_redundant_experts": 4, "window_size": 4, "step_interval": 8}}

AT_START = [*range(8), *range(4)]  # logical experts, then replicas of the first ones


@pytest.mark.parametrize(
    ("method", "graphs", "runner"),
    [
        pytest.param("mc2", True, "V1", id="mc2 in graphs"),
        pytest.param("mc2", False, "V1", marks=pytest.mark.slow, id="mc2"),
        pytest.param("alltoall", False, "V1", marks=pytest.mark.slow, id="alltoall"),
        pytest.param("allgather", False, "V1", marks=pytest.mark.slow, id="allgather"),
        pytest.param("allgather", True, "V1", marks=pytest.mark.slow, id="allgather in graphs"),
        pytest.param("mc2", True, "V2", marks=[needs_runner_v2, pytest.mark.slow], id="mc2 in graphs, V2"),
        pytest.param("alltoall", False, "V2", marks=[needs_runner_v2, pytest.mark.slow], id="alltoall, V2"),
    ],
)
def test_tokens_are_the_oracles_before_and_after_experts_move(
    method: str,
    graphs: bool,
    runner: str,
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Graphs are captured before the first expert moves: the map of experts is data to them, weights change in place."""
    checkpoint = checkpoints("qwen3_moe")
    cases = tiny_models.cases(checkpoint)
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS)
    job["arguments"] |= {
        "enforce_eager": not graphs,
        "additional_config": EPLB,
        "worker_extension_cls": "tests.serve.engine_script.ExpertMap",
    }
    job["ask"] = "physical_to_logical"
    traces = str(tmp_path / "{rank}-{pid}.json")
    environment = {"VLLM_ASCEND_PATCH_MOE_COMM": method, "VLLM_ASCEND_PATCH_TRACE": traces, **RUNNERS[runner]}
    result = run_engine(job, devices=2, **environment)
    assert runs(runner, result["log"])
    answers = [case.answer for case in cases]
    assert result["alone"] == answers[:2]
    assert result["together"] == answers
    assert result["late"] == answers
    assert len(re.findall(r"Rearranged experts +in", result["log"])) >= 3
    for layer in result["asked"][0]:
        assert len(layer) == 12
        assert set(layer) == set(range(8)), "every expert is somewhere"
        assert layer != AT_START, "experts moved to where the load is"
    assert chosen(result["log"]) == {method}
    workers = traced_workers(tmp_path)
    assert len(workers) == 2
    for worker in workers:
        assert (worker.modes["FULL"] > worker.modes["NONE"]) == graphs, worker.modes


def test_vllms_own_option_is_refused_before_anything_starts(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    output = refused(checkpoints("mixtral"), tmp_path, devices=2, dp=2, ep=True, arguments={"enable_eplb": True})
    assert "Expert parallelism load balancing is only supported on CUDA devices" in output
    assert "EngineCore" not in output


def test_balancing_without_distributed_experts_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    output = refused(checkpoints("mixtral"), tmp_path, arguments={"additional_config": EPLB})
    assert "expert load balancing needs experts on at least 2 ranks" in output[-1500:]
