# SPDX-License-Identifier: Apache-2.0
"""int8 experts take their scales along when load balancing moves them, also where captured graphs read both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoint import quantised
from tests.support.installed import needs_int8_experts, needs_modelslim

from .scripts import chosen, job_for
from .traces import traced_workers

pytestmark = [pytest.mark.serve, pytest.mark.slow, pytest.mark.timeout(900)]

EPLB = {"eplb_config": {"num_redundant_experts": 4, "window_size": 4, "step_interval": 8}}


@pytest.mark.parametrize(
    "form", [pytest.param("w8a8", marks=needs_int8_experts), pytest.param("modelslim", marks=needs_modelslim)]
)
def test_scales_move_with_int8_experts_under_graphs(
    form: str, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    """Graphs are captured before the first expert moves."""
    checkpoint, cases = quantised(checkpoints("qwen3_moe"), form, tmp_path)
    answers = [case.answer for case in cases]
    job = job_for(checkpoint, [case.prompt for case in cases], len(answers[0])) | {"ask": "physical_to_logical"}
    job["arguments"] |= {
        "enforce_eager": False,
        "additional_config": EPLB,
        "worker_extension_cls": "tests.serve.engine_script.ExpertMap",
    }
    traces = str(tmp_path / "{rank}-{pid}.json")
    result = run_engine(job, devices=2, VLLM_ASCEND_PATCH_MOE_COMM="mc2", VLLM_ASCEND_PATCH_TRACE=traces)
    assert result["alone"] == answers[:2]
    assert result["together"] == answers
    assert result["late"] == answers
    assert result["log"].count("Rearranged experts") >= 3
    for layer in result["asked"][0]:
        assert set(layer) == set(range(8)), "every expert is somewhere"
        assert layer != [*range(8), *range(4)], "experts moved to where the load is"
    assert chosen(result["log"]) == {"mc2"}
    for worker in traced_workers(tmp_path):
        assert worker.modes["FULL"] > 0
