# SPDX-License-Identifier: Apache-2.0
"""What workers' step traces say about graphs: modes of forwards, and whether the MoE layers were told of a replay."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vllm_ascend_patch.commands.trace import read_trace


@dataclass
class Worker:
    """What one worker's trace says.

    Attributes:
        modes: the graph modes of the forwards of requests.
        whole_steps: rows of those that were replayed whole, with data parallelism.
        captured: by step, whether the MoE layers were told that a graph runs them; idle steps included.
    """

    modes: Counter[str] = field(default_factory=Counter)
    whole_steps: set[int] = field(default_factory=set)
    captured: dict[int, list[bool]] = field(default_factory=dict)


def traced_workers(traces: Path) -> list[Worker]:
    """The workers, as far as they were traced: an engine that is stopped kills those that are not done in time."""
    found = []
    for file in sorted(traces.glob("*.json")):
        worker, step = Worker(), -1  # without data parallelism nothing is waited for, and all forwards are in one step
        for event in read_trace(file):
            if event["name"] == "wait":
                step = event["args"]["step"]
            elif event["name"] == "moe":
                worker.captured.setdefault(step, []).append(event["args"]["captured"])
            elif event["name"] == "forward" and "graph_mode" in event["args"]:
                worker.modes[event["args"]["graph_mode"]] += 1
                if event["args"]["graph_mode"] == "FULL":
                    worker.whole_steps.update(event["args"].get("tokens_per_rank", ()))
        if worker.modes:
            found.append(worker)
    return found
