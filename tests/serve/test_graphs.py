# SPDX-License-Identifier: Apache-2.0
"""Compiled models with and without captured graphs: the tokens stay transformers', and the graphs are really replayed.

The other tests of this folder run eagerly; here a job without ``enforce_eager`` gets what a user without flags gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models, w8a8_models
from tests.support.installed import FULL_GRAPHS_BY_DEFAULT, HAS_GRAPHS_OF_WHOLE_STEPS, needs_int8_experts

from .scripts import ALSO_ON_V2, RUNNERS, chosen, job_for
from .traces import Worker, traced_workers

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

GRAPHS = {"enforce_eager": False}
WHOLE_STEPS = {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}
COMPILED_ONLY = {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "NONE"}}


def graph_job(checkpoint: Path, tp: int, dp: int, arguments: dict[str, Any]) -> dict[str, Any]:
    prompts = [case.prompt for case in tiny_models.cases(checkpoint)]
    return job_for(checkpoint, prompts, tiny_models.NEW_TOKENS, tp, dp, arguments)


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


def check_same_replays(workers: list[Worker]) -> None:
    """Every rank replayed the steps that the others replayed, and there were many."""
    # The last step that was written may lack its last events.
    steps = range(min(max(worker.captured) for worker in workers))
    for step in steps:
        captured = [worker.captured.get(step) for worker in workers]
        assert all(one == captured[0] for one in captured), f"the ranks did not replay step {step} alike: {captured}"
    assert sum(workers[0].captured.get(step) == [True] for step in steps) > 50


@pytest.mark.parametrize(
    ("family", "tp", "dp", "soc", "methods"),
    [
        ("mixtral", 1, 1, "A2", {"allgather"}),
        ("mixtral_wide", 1, 2, "A3", {"mc2", "allgather"}),
        pytest.param("qwen2_moe", 1, 2, "A2", {"allgather"}, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", 2, 2, "A2", {"allgather"}, marks=pytest.mark.slow),
        pytest.param("mixtral_wide", 2, 2, "A3", {"mc2", "allgather"}, marks=pytest.mark.slow),
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
    """Decoding is replayed as whole steps, where that can be, short prompts and what decodes beside them in pieces, long
    prompts not at all; a rank that decodes while another has prompts does as that one does."""
    checkpoint = checkpoints(family)
    job = graph_job(checkpoint, tp, dp, GRAPHS)
    traces = tmp_path / "traces"
    traces.mkdir()
    result = run_engine(job, devices=tp * dp, soc=soc, VLLM_ASCEND_PATCH_TRACE=str(traces / "{rank}-{pid}.json"))
    check(result, job, checkpoint)
    assert chosen(result["log"]) == methods
    if FULL_GRAPHS_BY_DEFAULT and not HAS_GRAPHS_OF_WHOLE_STEPS:
        assert "cudagraph_mode is PIECEWISE instead of FULL_AND_PIECEWISE" in result["log"]
    for measured in re.findall(r"Profiling CUDA graph memory: (.+)", result["log"]):  # not in all releases
        assert ("FULL=" in measured) == HAS_GRAPHS_OF_WHOLE_STEPS, (
            "what is captured is measured before the KV cache is sized"
        )
    workers = traced_workers(traces)
    assert len(workers) == tp * dp
    for worker in workers:
        replays = worker.modes["PIECEWISE"] + worker.modes["FULL"]
        if HAS_GRAPHS_OF_WHOLE_STEPS:
            assert worker.modes["FULL"] > worker.modes["PIECEWISE"], worker.modes  # how many pieces, arrivals decide
        assert replays > worker.modes["NONE"] > 0, worker.modes
        told = sum(map(sum, worker.captured.values()))
        assert told >= replays, f"replays whose mask nobody brought up to date: {told} {worker.modes}"
    if dp > 1:
        check_same_replays(workers)
        if HAS_GRAPHS_OF_WHOLE_STEPS:  # requests come and go, so steps of a generation grow and shrink
            assert all(worker.whole_steps >= {1, 2, 4} for worker in workers), [
                worker.whole_steps for worker in workers
            ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tp", "dp", "soc", "methods"),
    [
        ("mixtral", 1, 1, "A2", {"allgather"}),
        ("qwen3_moe", 2, 1, "A2", {"allgather"}),
        ("mixtral_wide", 1, 2, "A3", {"mc2", "allgather"}),
        ("qwen2_moe", 1, 2, "A2", {"allgather"}),
        ("mixtral_wide", 2, 2, "A3", {"mc2", "allgather"}),
    ],
)
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_tokens_equal_transformers_with_graphs_of_whole_decode_steps(
    runner: str,
    family: str,
    tp: int,
    dp: int,
    soc: str,
    methods: set[str],
    checkpoints: Callable[[str], Path],
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Decoding is one graph per step, on all ranks or on none; an idle rank replays it with rows that are no request's."""
    checkpoint = checkpoints(family)
    job = graph_job(checkpoint, tp, dp, WHOLE_STEPS)
    traces = tmp_path / "traces"
    traces.mkdir()
    environment = {"VLLM_ASCEND_PATCH_TRACE": str(traces / "{rank}-{pid}.json"), **RUNNERS[runner]}
    result = run_engine(job, devices=tp * dp, soc=soc, **environment)
    check(result, job, checkpoint)
    assert chosen(result["log"]) == methods
    workers = traced_workers(traces)
    assert len(workers) == tp * dp
    for worker in workers:
        assert worker.modes["FULL"] > worker.modes["NONE"] > 0, worker.modes
        assert worker.modes["PIECEWISE"] == 0
    if dp > 1:
        check_same_replays(workers)


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (1, 2)])
def test_tokens_equal_transformers_when_compiled_without_graphs(
    tp: int, dp: int, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("qwen2_moe")
    job = graph_job(checkpoint, tp, dp, COMPILED_ONLY)
    check(run_engine(job, devices=tp * dp), job, checkpoint)


@pytest.mark.slow
def test_a_method_that_no_graph_can_capture_switches_graphs_off_visibly(
    checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    checkpoint = checkpoints("qwen2_moe")
    job = graph_job(checkpoint, 1, 2, GRAPHS)
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
    """Of four tokens, three are decoded, in graphs of whole steps where those can be had."""
    quantised, twin = w8a8_models.make(checkpoints("mixtral"), tmp_path)
    cases = w8a8_models.first_token_cases(twin, 12, tokens=4)
    traces = tmp_path / "traces"
    traces.mkdir()
    job = job_for(quantised, [case.prompt for case in cases], 4, arguments=GRAPHS)
    environment = {"VLLM_ASCEND_PATCH_MOE_COMM": "mc2", "VLLM_ASCEND_PATCH_TRACE": str(traces / "{rank}-{pid}.json")}
    result = run_engine(job, devices=2, **environment)
    assert result["together"] == [case.answer for case in cases]
    assert result["late"] == [case.answer for case in cases]
    for worker in traced_workers(traces):
        assert worker.modes["FULL" if HAS_GRAPHS_OF_WHOLE_STEPS else "PIECEWISE"] > 5, worker.modes
