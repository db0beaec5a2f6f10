# SPDX-License-Identifier: Apache-2.0
"""Compiled models with and without captured graphs: the tokens stay transformers', and the graphs are really replayed.

The other tests of this folder run eagerly; here a job without ``enforce_eager`` gets what a user without flags gets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.installed import FULL_GRAPHS_BY_DEFAULT, needs_int8_experts

from . import tiny_models, w8a8_models
from .test_methods import chosen

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

GRAPHS = {"enforce_eager": False}
COMPILED_ONLY = {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "NONE"}}


def job_for(checkpoint: Path, tp: int, dp: int, ep: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": ep,
        "prompts": [case.prompt for case in tiny_models.cases(checkpoint)],
        "max_tokens": tiny_models.NEW_TOKENS,
        "many": 10,
        "arguments": arguments,
    }


def graph_modes(traces: Path) -> list[Counter[str]]:
    """How many forwards each worker ran in which graph mode, and for how many it told its layers the step ("told")."""
    found = []
    for file in sorted(traces.glob("*.json")):
        lines = [line.rstrip(",\n") for line in file.read_text().splitlines() if '"forward"' in line or '"moe"' in line]
        events = [json.loads(line) for line in lines]
        modes = Counter(event["args"]["graph_mode"] for event in events if "graph_mode" in event.get("args", {}))
        if modes:
            modes["told"] = sum(event["name"] == "moe" for event in events)
            found.append(modes)
    return found


def check(result: dict[str, Any], job: dict[str, Any], checkpoint: Path) -> None:
    expected = [case.answer for case in tiny_models.cases(checkpoint)]
    if job["dp"] == 1:
        assert result["tokens"] == expected
        assert result["again"] == expected
    else:
        assert result["alone"] == expected[:2]
        assert result["together"] == expected
        assert result["late"] == expected
        assert result["aborted_after"] >= 5
        assert result["many_complete"]


@pytest.mark.parametrize(
    ("family", "tp", "dp", "soc", "methods"),
    [
        ("mixtral", 1, 1, "A2", {"allgather"}),
        ("mixtral_wide", 1, 2, "A3", {"mc2", "alltoall"}),
        pytest.param("qwen2_moe", 1, 2, "A2", {"allgather"}, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", 2, 2, "A2", {"allgather"}, marks=pytest.mark.slow),
        pytest.param("mixtral_wide", 2, 2, "A3", {"mc2", "alltoall"}, marks=pytest.mark.slow),
    ],
)
def test_tokens_equal_transformers_with_graphs(
    family: str,
    tp: int,
    dp: int,
    soc: str,
    methods: set[str],
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Decoding is replayed, long prefills are not, and a rank that decodes while another prefills runs eagerly with it."""
    checkpoint = checkpoints(family)
    job = job_for(checkpoint, tp, dp, dp * tp > 1, GRAPHS)
    traces = tmp_path / "traces"
    traces.mkdir()
    result = run_engine(job, devices=tp * dp, soc=soc, VLLM_ASCEND_PATCH_TRACE=str(traces / "{rank}-{pid}.json"))
    check(result, job, checkpoint)
    assert chosen(result["log"]) == methods
    if FULL_GRAPHS_BY_DEFAULT:
        assert "cudagraph_mode is PIECEWISE instead of FULL_AND_PIECEWISE" in result["log"]
    modes = graph_modes(traces)
    assert len(modes) == tp * dp
    for mode in modes:
        assert mode["PIECEWISE"] > mode["NONE"] > 0, modes
        assert mode["told"] >= mode["PIECEWISE"], f"replays whose mask nobody brought up to date: {modes}"
    replays = [mode["PIECEWISE"] for mode in modes]
    # The engine is stopped while ranks may still run an idle step, which then is in the trace of some only.
    assert max(replays) - min(replays) <= 1, f"the ranks did not replay together: {modes}"


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (1, 2)])
def test_tokens_equal_transformers_when_compiled_without_graphs(
    tp: int, dp: int, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("qwen2_moe")
    job = job_for(checkpoint, tp, dp, dp > 1, COMPILED_ONLY)
    check(run_engine(job, devices=tp * dp), job, checkpoint)


@pytest.mark.slow
def test_a_method_that_no_graph_can_capture_switches_graphs_off_visibly(
    checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("qwen2_moe")
    job = job_for(checkpoint, 1, 2, True, GRAPHS)
    result = run_engine(job, devices=2, VLLM_ASCEND_PATCH_MOE_COMM="alltoall")
    check(result, job, checkpoint)
    assert (
        "VLLM_ASCEND_PATCH_MOE_COMM=alltoall reads sizes from the device, which no graph can capture" in result["log"]
    )
    assert chosen(result["log"]) == {"alltoall"}


@needs_int8_experts
@pytest.mark.slow
def test_int8_experts_in_graphs_keep_every_clear_choice_of_the_dequantised_model(
    checkpoints: Callable[[str], Path], run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    quantised, twin = w8a8_models.make(checkpoints("mixtral"), tmp_path)
    cases = w8a8_models.first_token_cases(twin, 16)
    job = job_for(checkpoints("mixtral"), 1, 2, True, GRAPHS) | {
        "model": str(quantised),
        "prompts": [case.prompt for case in cases],
        "max_tokens": 1,
    }
    result = run_engine(job, devices=2, VLLM_ASCEND_PATCH_MOE_COMM="mc2")
    assert result["together"] == [case.answer for case in cases]
