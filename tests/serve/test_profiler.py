# SPDX-License-Identifier: Apache-2.0
"""vLLM's profiler option writes torch_npu's traces, one per worker and recording, while tokens stay what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.processes import result_of

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]


@pytest.mark.slow
def test_a_profiled_engine_answers_right_and_leaves_a_trace_per_worker_and_recording(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint, folder = checkpoints("mixtral"), tmp_path / "traces"
    cases = tiny_models.few_cases(checkpoint)
    job = {"model": str(checkpoint), "folder": str(folder), "prompts": [case.prompt for case in cases]}
    done = run_script("tests.serve.profiler_script", text=json.dumps(job), devices=2, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert result_of(done) == [[case.answer for case in cases]] * 2
    traces = sorted(folder.glob("*_ascend_pt/ASCEND_PROFILER_OUTPUT/trace_view.json"))
    assert len(traces) == 4
    for trace in traces:
        events = json.loads(trace.read_text())
        names = {event.get("name") for event in events}
        assert any("npu_fused_infer_attention_score" in str(name) for name in names)
        assert any(str(name).startswith("execute_") for name in names), "vLLM's own annotation of a step"
        assert str(trace) in done.stdout
