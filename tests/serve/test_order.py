# SPDX-License-Identifier: Apache-2.0
"""Engines under the virtual NPU's check of order: an operator that nothing orders after one that it depends on ends the
engine, so the oracle's tokens prove both. Each of two ranks idles, prefills and decodes beside the other on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.installed import needs_kernel_registry

from .scripts import chosen, job_for
from .test_eplb import EPLB
from .test_speculative import EAGER, GRAPHS, METHODS, drafting

pytestmark = [pytest.mark.serve, pytest.mark.timeout(1200)]

CHECK = {"VIRTUAL_NPU_CHECK_ORDER": "line"}
Engine = Callable[..., Any]
Checkpoints = Callable[[str], Path]


def serve(run_engine: Engine, checkpoint: Path, arguments: dict[str, Any], soc: str = "A2", **environment: str) -> Any:
    """Two data-parallel ranks; every answer must be the oracle's."""
    cases = tiny_models.cases(checkpoint)
    arguments = {"distributed_executor_backend": "uni", **arguments}
    job = job_for(checkpoint, [case.prompt for case in cases], tiny_models.NEW_TOKENS, arguments=arguments)
    result = run_engine(job, devices=2, soc=soc, **CHECK, **environment)
    answers = [case.answer for case in cases]
    assert result["together"] == answers
    assert result["late"] == answers
    assert "--check-order" not in result["log"]
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "asynchronous"), [("device", True), ("cpu", False), ("shared", True)])
def test_the_step_sync(transport: str, asynchronous: bool, checkpoints: Checkpoints, run_engine: Engine) -> None:
    arguments = {"async_scheduling": asynchronous}
    serve(run_engine, checkpoints("mixtral"), arguments, VLLM_ASCEND_PATCH_DP_SYNC=transport)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "soc"), [("allgather", "A2"), ("mc2", "A3"), ("alltoall", "A2")])
def test_the_methods(method: str, soc: str, checkpoints: Checkpoints, run_engine: Engine) -> None:
    checkpoint = checkpoints("qwen2_moe_wide" if soc == "A3" else "qwen2_moe")
    result = serve(run_engine, checkpoint, {}, soc, VLLM_ASCEND_PATCH_MOE_COMM=method)
    assert chosen(result["log"]) == {method}


@pytest.mark.parametrize(
    "mode",
    [
        None,  # whole decode steps, and pieces for the others
        pytest.param("PIECEWISE", marks=pytest.mark.slow),
        pytest.param("FULL_DECODE_ONLY", marks=pytest.mark.slow),
    ],
)
def test_graphs(mode: str | None, checkpoints: Checkpoints, run_engine: Engine) -> None:
    graphs = {"enforce_eager": False} | ({"compilation_config": {"cudagraph_mode": mode}} if mode else {})
    result = serve(run_engine, checkpoints("mixtral_wide"), graphs, "A3", VLLM_ASCEND_PATCH_DP_SYNC="device")
    assert chosen(result["log"]) == {"mc2", "allgather"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mc2", "alltoall"])
def test_expert_load_balancing(method: str, checkpoints: Checkpoints, run_engine: Engine) -> None:
    arguments = {"additional_config": EPLB}
    result = serve(run_engine, checkpoints("qwen3_moe"), arguments, VLLM_ASCEND_PATCH_MOE_COMM=method)
    assert "Rearranged experts" in result["log"]


@needs_kernel_registry
@pytest.mark.slow
@pytest.mark.parametrize("graphs", [EAGER, GRAPHS], ids=["eagerly", "in graphs"])
@pytest.mark.parametrize("method", METHODS)
def test_speculative_decoding(method: str, graphs: dict[str, Any], run_engine: Engine, tmp_path: Path) -> None:
    """With a drafter, steps are scheduled asynchronously, and the host reads what was sampled from pinned memory."""
    checkpoint, settings = drafting(method, tmp_path)
    arguments = {"speculative_config": settings, **graphs}
    serve(run_engine, checkpoint, arguments, VLLM_ASCEND_PATCH_DP_SYNC="device")
