# SPDX-License-Identifier: Apache-2.0
"""What is run on every release, and how its outcome is judged. Starting processes is ``runner.py``'s business."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.steps import read_events


@dataclass(frozen=True)
class Configuration:
    """One engine: ``tp`` x ``dp`` NPUs of ``soc`` and environment variables."""

    name: str
    tp: int
    dp: int
    family: str = "qwen2_moe"  # the one with a shared expert, whose reduction differs most between releases
    soc: str = "A2"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def expert_parallel(self) -> bool:
        return self.dp > 1

    def job(self, model: Path, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """The job for ``tests/serve/engine_script.py``."""
        return {
            "model": str(model),
            "tp": self.tp,
            "dp": self.dp,
            "ep": self.expert_parallel,
            "prompts": prompts,
            "max_tokens": max_tokens,
            "many": 20,
            # The default in newer releases only.
            "arguments": {"enable_chunked_prefill": True},
        }


CONFIGURATIONS: dict[str, Configuration] = {
    # In one process, so that the status of every patch is the engine's own.
    "1": Configuration("one device", 1, 1, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}),
    "dp2": Configuration("DP 2, EP", 1, 2, soc="A3"),
    "tp2dp2": Configuration("TP 2 x DP 2, EP", 2, 2, soc="A3"),
}


def judge(result: dict[str, Any], answers: list[list[int]]) -> list[str]:
    """What is wrong with an engine's result, in words; nothing when all greedy tokens are the oracle's."""
    problems = []
    for name, expected in (
        ("tokens", answers),
        ("again", answers),
        ("alone", answers[:2]),
        ("together", answers),
        ("late", answers),
    ):
        if name not in result:
            continue
        wrong = [i for i, (found, want) in enumerate(zip(result[name], expected, strict=True)) if found != want]
        if wrong:
            problems.append(f"{name}: prompts {wrong} of {len(expected)} differ from transformers")
    if not result.get("many_complete", True):
        problems.append("many short requests: lengths differ from what was asked")
    if "tokens" not in result and "together" not in result:
        problems.append("no tokens")
    refused = [patch for patch, state in result.get("status", ()) if state in ("refused", "failed")]
    if refused:
        problems.append(f"patches not applied: {', '.join(refused)}")
    return problems


def patches(result: dict[str, Any]) -> dict[str, int]:
    """How many patches are in which state."""
    counts: dict[str, int] = {}
    for _, state in result.get("status", ()):
        counts[state] = counts.get(state, 0) + 1
    return counts


def traced(trace: Path) -> dict[str, Any]:
    """From the ranks' step traces: MoE forwards per method, and metadata collectives per forward."""
    files = sorted(trace.parent.glob(f"{trace.stem}.rank*{trace.suffix}"))
    methods: dict[str, int] = {}
    posts = forwards = 0
    for event in (event for file in files for event in read_events(file)):
        if event["name"] == "post":
            posts += 1
        elif event["name"] == "moe":
            forwards += 1
            method = event["args"]["method"]
            methods[method] = methods.get(method, 0) + 1
    summary: dict[str, Any] = {"methods": methods}
    if posts and forwards:
        summary["collectives_per_forward"] = round(posts / forwards, 3)
    return summary
