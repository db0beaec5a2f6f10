# SPDX-License-Identifier: Apache-2.0
"""What the host does per decode step, eagerly, with graphs of pieces and of whole steps, and how it grows with layers.

Each way and number of layers is an engine of its own, which decodes batches of several sizes. Calls into the runtime are
counted in one step, others are timed, as time of the processor. A virtual NPU works on the host, at once: what happens in
the vendor's operators and in a graph's replay is taken off, and so it is in the update of a task group. What stays is the
host's way to them: Python, torch, vLLM. (Operators of ``aten`` that are launched one by one stay in, with their results of a
few kilobytes.)

    python benchmarks/decode_step.py [--layers 2 24] [--batches 1 8 32] [--runner v2]

With ``--runner v2`` both of vLLM's model runners are measured, and the last line has the largest ratio of V2's whole steps,
sampling included, to V1's.
"""

from __future__ import annotations

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=1)  # before torch, which loads torch_npu

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vllm_ascend_patch.releases.runner import VARIABLE

MODES = {"eager": "NONE", "pieces": "PIECEWISE", "whole": "FULL_DECODE_ONLY"}
GOAL = 0.3
"""Host time of a forward with whole steps over that with pieces, at the most layers and any batch."""
RUNNERS = {"v1": ("v1",), "v2": ("v1", "v2")}
"""The model runners that are measured, by the one that was asked for."""


def run(runner: str, mode: str, layers: int, batches: list[int]) -> dict[str, dict[str, Any]]:
    """What an engine of its own found, by batch; see ``decode_step_worker.py``."""
    worker = Path(__file__).with_name("decode_step_worker.py")
    command = [sys.executable, str(worker), MODES[mode], str(layers), *map(str, batches)]
    environment = {**os.environ, VARIABLE: str(int(runner == "v2"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{mode} with {layers} layers failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(runner: str, layers_of: list[int], batches: list[int]) -> dict[str, Any]:
    """Figures of one runner by layers, mode and batch, printed as they come."""
    figures: dict[str, Any] = {}
    print(
        f"{f'model runner {runner}':>24} {'launches':>9} {'replays':>8} {'updates':>8} {'copies':>7} {'events':>7} "
        f"{'forward us':>11} {'rest of step us':>16} {'sampling us':>12} {'launches':>9}"
    )
    for layers in layers_of:
        found = {mode: run(runner, mode, layers, batches) for mode in MODES}
        for batch in map(str, batches):
            for mode in MODES:
                row = found[mode][batch]
                # What is left of the step is vLLM's own: preparing inputs, attention metadata.
                row["over_vllm"] = round(row["host_us"] / row["rest_us"], 3)
                calls = row["calls"]
                print(
                    f"{f'{layers} layers, {batch}, {mode}':>24} {calls['launches']:>9} {calls['replays']:>8} "
                    f"{calls['updates']:>8} {calls['copies']:>7} {calls['events']:>7} {row['host_us']:>11.0f} "
                    f"{row['rest_us']:>16.0f} {row['sample_us']:>12.0f} {row['sample_launches']:>9}"
                )
        figures[str(layers)] = found
    return figures


def over_v1(v1: dict[str, Any], v2: dict[str, Any]) -> float:
    """The largest ratio of a whole step's host time."""

    def step(row: dict[str, Any]) -> float:
        return float(row["host_us"] + row["rest_us"] + row["sample_us"])

    return max(
        step(row) / step(v1[layers][mode][batch])
        for layers, by_mode in v2.items()
        for mode, by_batch in by_mode.items()
        for batch, row in by_batch.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 24])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--runner", choices=RUNNERS, default="v1", help="vLLM's model runner")
    options = parser.parse_args()
    measured = {runner: measure(runner, options.layers, options.batches) for runner in RUNNERS[options.runner]}
    figures = measured[options.runner]
    most = figures[str(max(options.layers))]
    ratios = {batch: most["whole"][batch]["host_us"] / most["pieces"][batch]["host_us"] for batch in most["whole"]}
    result = {
        "name": "decode_step",
        "runner": options.runner,
        "figures": figures,
        "ratio": round(max(ratios.values()), 3),
        "goal": GOAL,
    }
    if options.runner == "v2":
        result["over_v1"] = round(over_v1(measured["v1"], figures), 3)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
