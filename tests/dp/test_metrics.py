# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of the step sync while it serves: one log line per interval, or counters on vLLM's endpoint."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from tests.support.environment import without_devices
from tests.support.processes import run
from vllm_ascend_patch.core.dp.metrics import StepCounters

from .counted_steps import STEPS


def test_without_an_endpoint_one_line_per_interval_has_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    counters = StepCounters(rank=1, interval=3600)
    with caplog.at_level(logging.INFO, logger="vllm_ascend_patch"):
        counters.count(STEPS[0], wait_seconds=20e-6, hidden_seconds=1e-3)
        counters.count_reuse()
        assert not caplog.messages, "the interval is not over"
        for method in ("mc2", "alltoall", "mc2"):
            counters.count_moe_step(method)
        counters.interval = 1e-9
        counters.count(STEPS[1], wait_seconds=40e-6, hidden_seconds=1e-3)
    assert caplog.messages == [
        "DP rank 1: 2 steps (1 idle), 2 exchanges, 1 saved, mean wait 30 us, 8 padding of 13 tokens, 1 by alltoall, "
        "2 by mc2"
    ]


def test_with_an_endpoint_every_workers_counters_are_in_its_directory(tmp_path: Path) -> None:
    """Two worker processes, and vLLM's way of collecting what they counted."""
    collect = (
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "registry = CollectorRegistry(); multiprocess.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())"
    )
    environment = without_devices(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))

    def python(*arguments: str) -> str:
        done = run([sys.executable, *arguments], seconds=60, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for rank in "01":
        python("-m", "tests.dp.counted_steps", rank)
    text = python("-c", collect)
    for rank, idle, padding in (("0", 0.0, 2.0), ("1", 1.0, 8.0)):
        expected = {
            "steps": 2.0,
            "exchanges": 2.0,
            "idle_steps": idle,
            "padding_tokens": padding,
            "wait_seconds": 1.0,
        }
        for name, value in expected.items():
            assert f'vllm_ascend_patch_dp_{name}_total{{dp_rank="{rank}"}} {value}' in text, text
        for method, count in (("mc2", 2.0), ("alltoall", 1.0)):
            line = f'vllm_ascend_patch_dp_moe_steps_total{{dp_rank="{rank}",method="{method}"}} {count}'
            assert line in text, text
