# SPDX-License-Identifier: Apache-2.0
"""Collectives of a real engine, counted by an independent observer in its workers: one per forward, of one size, on one
group, whatever the step; and the trace that the same run writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_ascend_patch.core.dp.vector import NUM_FIELDS
from vllm_ascend_patch.core.trace_report import read_trace, summarise

from .processes import under_virtual_npu

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(900)]

SIZE = 2
PHASES = ("prefill, one request", "decode, one request", "mixed, all ranks", "idle", "decode after idling")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("collectives")
    made = under_virtual_npu("-m", "tests.dp.checkpoint", str(folder), "qwen3_moe", timeout=400)
    lines = [line for line in made.stdout.splitlines() if line.startswith("CHECKPOINT ")]
    assert lines, made.stderr[-3000:]
    job = {"model": json.loads(lines[-1][11:])["path"], "dp": SIZE, "arguments": {"enforce_eager": True}}
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job))
    result = under_virtual_npu(
        "-m",
        "tests.dp.count_engine",
        str(job_file),
        devices=SIZE,
        timeout=450,
        environment={"VLLM_ASCEND_PATCH_DP_SYNC": "cpu", "VLLM_ASCEND_PATCH_TRACE": str(folder / "trace.json")},
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, result.stdout[-3000:] + result.stderr[-5000:]
    return json.loads(lines[-1].removeprefix("RESULT ")), folder


def _reduces(counts: dict[str, Any]) -> dict[tuple[str, int, str, int], int]:
    return {(op, size, device, total): count for op, size, device, total, count in counts["collectives"]}


STEP = ("allreduce_", SIZE, "cpu", 4 * NUM_FIELDS * SIZE)


def test_profiling_and_warm_up_send_one_vector_each(run: tuple[dict[str, Any], Path]) -> None:
    counts = run[0]["start-up"][0]
    assert counts["posted"] > 0
    assert _reduces(counts)[STEP] == counts["posted"]


def test_every_forward_takes_exactly_one_collective(run: tuple[dict[str, Any], Path]) -> None:
    before = run[0]["start-up"][0]
    for phase in PHASES:
        after = run[0][phase][0]
        forwards = after["forwards"] - before["forwards"]
        new = {k: n - _reduces(before).get(k, 0) for k, n in _reduces(after).items()}
        new = {key: count for key, count in new.items() if count}
        assert new == ({STEP: forwards} if forwards else {}), f"{phase}: {forwards} forwards"
        assert (forwards == 0) == (phase == "idle"), f"{phase}: {forwards} forwards"
        before = after


def test_the_trace_of_the_run_says_the_same(run: tuple[dict[str, Any], Path]) -> None:
    result, folder = run
    posted = result["decode after idling"][0]["posted"]
    summaries = [summarise(read_trace(folder / f"trace.rank{rank}.json")) for rank in range(SIZE)]
    assert [s.rank for s in summaries] == [0, 1]
    for summary in summaries:
        assert summary.steps == posted
        assert sum(summary.methods.values()) > 0
        assert len(summary.waits) + len(summary.direct_waits) == posted
        assert summary.idle_steps < posted
    assert sum(s.idle_steps for s in summaries) > 0, "one request on two ranks must leave one of them idle"
    assert any(s.hidden_share and s.hidden_share > 0 for s in summaries)
