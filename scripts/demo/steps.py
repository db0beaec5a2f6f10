# SPDX-License-Identifier: Apache-2.0
"""Reads what the engine's ranks wrote about their steps (``VLLM_ASCEND_PATCH_TRACE``) and sums it up for a person."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepSummary:
    """Counts over all ranks, and sentences for the demo's table.

    Attributes:
        ranks: ranks that wrote a trace.
        steps: forwards of the main model, summed over ranks.
        idle_steps: how many of them were dummy steps of a rank without requests.
        exchanges: of data-parallel metadata, per forward.
        methods: MoE communication methods, with the reason for each.
    """

    ranks: int
    steps: int
    idle_steps: int
    exchanges: str
    methods: str


def summarise(trace: Path) -> StepSummary:
    """Sum up the files ``<stem>.rank<R>.json`` that belong to ``trace``; zero counts when there is none."""
    files = sorted(trace.parent.glob(f"{trace.stem}.rank*{trace.suffix}"))
    events = [event for file in files for event in read_events(file)]
    waits = [e["args"] for e in events if e["name"] == "wait"]
    posts = sum(e["name"] == "post" for e in events)
    forwards = [e["args"] for e in events if e["name"] == "moe"]
    transports = ", ".join(sorted({str(w.get("transport")) for w in waits}))
    exchanges = "none: nothing was traced"
    if forwards:
        exchanges = f"{posts / len(forwards):.2f} ({posts} for {len(forwards)} forwards, transport {transports})"
    reasons = Counter((f["method"], f["reason"]) for f in forwards)
    methods = "\n".join(f"{method}: {count} forwards ({reason})" for (method, reason), count in reasons.most_common())
    return StepSummary(
        len(files), len(waits), sum(bool(w.get("idle")) for w in waits), exchanges, methods or "not traced"
    )


def read_events(file: Path) -> list[dict[str, Any]]:
    """Events of a Chrome trace whose closing bracket may be missing."""
    text = file.read_text().strip().rstrip(",").removesuffix("]").rstrip().rstrip(",")
    return json.loads(text + "]") if text else []
