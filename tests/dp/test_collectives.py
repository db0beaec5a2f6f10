# SPDX-License-Identifier: Apache-2.0
"""Collectives of a real engine, counted by an independent observer in its workers: one per step, of one size, on one group,
or none at all through shared memory; whatever the step, drafter forwards included. And the trace that the run writes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import ROOT
from tests.support.installed import needs_kernel_registry, needs_runner_v2
from tests.support.processes import result_of, under_virtual_npu
from vllm_ascend_patch.commands.trace import read_trace, summarise
from vllm_ascend_patch.core.dp.vector import NUM_FIELDS

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(900)]

SIZE = 2
DRAFTS = 3
PHASES = ("prefill, one request", "decode, one request", "mixed, all ranks", "idle", "decode after idling")


@dataclass(frozen=True)
class Setup:
    family: str
    transport: str
    arguments: dict[str, Any] = field(default_factory=dict)
    runner: str = "V1"

    @property
    def step(self) -> tuple[str, int, str, int]:
        """The collective that carries vectors, as the counter names it; for shared memory, the one that sets it up."""
        return ("allreduce_", SIZE, "npu" if self.transport == "device" else "cpu", 4 * NUM_FIELDS * SIZE)

    def collectives(self, vectors: int) -> int:
        """How many of them so many vectors take."""
        return 0 if self.transport == "shared" else vectors


STARTING = {"cpu": 0, "device": 5, "shared": 3}
"""Collectives of start-up: finding out whether the backend's wait blocks the host; agreeing on the memory."""

SETUPS = {
    "cpu": Setup("qwen3_moe", "cpu"),
    "shared": Setup("qwen3_moe", "shared"),
    "graphs": Setup("qwen3_moe", "cpu", {"enforce_eager": False}),
    "runner V2": Setup("qwen3_moe", "cpu", runner="V2"),
    "runner V2, shared, graphs": Setup("qwen3_moe", "shared", {"enforce_eager": False}, runner="V2"),
    "runner V2, drafter with forwards": Setup(
        "glm4_moe", "cpu", {"speculative_config": {"method": "mtp", "num_speculative_tokens": DRAFTS}}, runner="V2"
    ),
    "device, no async scheduling": Setup("qwen3_moe", "device", {"async_scheduling": False}),
    "drafter with forwards": Setup(
        "glm4_moe", "device", {"speculative_config": {"method": "mtp", "num_speculative_tokens": DRAFTS}}
    ),
}


@dataclass(frozen=True)
class Run:
    setup: Setup
    phases: dict[str, list[dict[str, Any]]]
    folder: Path


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name,
            marks=needs_runner_v2
            if setup.runner == "V2"
            else needs_kernel_registry
            if "speculative_config" in setup.arguments
            else (),
        )
        for name, setup in SETUPS.items()
    ],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    setup = SETUPS[request.param]
    folder = tmp_path_factory.mktemp("collectives")
    made = result_of(under_virtual_npu("-m", "tests.support.checkpoint", str(folder), setup.family, seconds=400))
    arguments = {"enforce_eager": True, **setup.arguments}
    job = {"model": made["path"], "dp": SIZE, "folder": str(folder), "arguments": arguments}
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job))
    result = under_virtual_npu(
        "-m",
        "tests.dp.count_engine",
        str(job_file),
        devices=SIZE,
        seconds=450,
        environment={
            "VLLM_ASCEND_PATCH_DP_SYNC": setup.transport,
            "VLLM_ASCEND_PATCH_TRACE": str(folder / "trace.json"),
            "VLLM_USE_V2_MODEL_RUNNER": str(int(setup.runner == "V2")),
        },
    )
    return Run(setup, result_of(result), folder)


def _reduces(counts: dict[str, Any]) -> dict[tuple[str, int, str, int], int]:
    return {(op, size, device, total): count for op, size, device, total, count in counts["collectives"]}


def test_profiling_and_warm_up_send_one_vector_per_forward(run: Run) -> None:
    for counts in run.phases["start-up"]:
        assert counts["posted"] > 0
        expected = run.setup.collectives(counts["posted"]) + STARTING[run.setup.transport]
        assert _reduces(counts).get(run.setup.step, 0) == expected


@pytest.mark.parametrize("rank", range(SIZE))
def test_every_step_sends_one_vector_and_takes_no_other_collective(run: Run, rank: int) -> None:
    before = run.phases["start-up"][rank]
    for phase in PHASES:
        after = run.phases[phase][rank]
        steps = after["forwards"] - before["forwards"]
        new = {k: n - _reduces(before).get(k, 0) for k, n in _reduces(after).items()}
        # Where the engine shares the worker's thread, its question whether any rank has work left is counted, too.
        questions = new.pop(("allreduce_", SIZE, "cpu", 4), 0)
        assert questions <= steps / 8, f"{phase}: {questions} for {steps} steps"
        new = {key: count for key, count in new.items() if count}
        taken = run.setup.collectives(steps)
        assert new == ({run.setup.step: taken} if taken else {}), f"{phase}: {steps} steps"
        assert after["posted"] - before["posted"] == steps, phase
        assert (steps == 0) == (phase == "idle"), f"{phase}: {steps} steps"
        drafts = after["drafter forwards"] - before["drafter forwards"]
        with_drafter = "speculative_config" in run.setup.arguments
        assert drafts == (DRAFTS * steps if with_drafter else 0), phase
        # Upstream asks for an agreement before the drafter's first and second forward.
        assert after["reused"] - before["reused"] == (2 * steps if with_drafter else 0), phase
        before = after


def test_the_trace_of_the_run_says_the_same(run: Run) -> None:
    summaries = [summarise(read_trace(run.folder / f"trace.rank{rank}.json")) for rank in range(SIZE)]
    assert [s.rank for s in summaries] == [0, 1]
    for rank, summary in enumerate(summaries):
        posted = run.phases["decode after idling"][rank]["posted"]
        assert sum(summary.methods.values()) > 0
        assert len(summary.waits) + len(summary.direct_waits) == posted
        assert summary.steps <= posted  # profiling posts for a drafter's forwards too
        assert summary.idle_steps < posted
    assert sum(s.idle_steps for s in summaries) > 0, "one request on two ranks must leave one of them idle"
    assert any(s.hidden_share and s.hidden_share > 0 for s in summaries)


def test_the_trace_command_sums_it_up_and_draws_it(run: Run) -> None:
    files = [str(run.folder / f"trace.rank{rank}.json") for rank in range(SIZE)]
    plot = run.folder / "plot.png"
    command = [sys.executable, "-m", "vllm_ascend_patch", "trace", *files, "-o", str(plot)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    assert "Step sync by rank" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
