# SPDX-License-Identifier: Apache-2.0
"""Two steps that are counted, and a worker process that counts them: ``python -m tests.dp.counted_steps RANK``."""

from __future__ import annotations

import sys

from vllm_ascend_patch.core.dp import StepVector, agree
from vllm_ascend_patch.core.dp.metrics import StepCounters

from .worlds import matrix

STEPS = [
    agree(matrix([StepVector(6, 8, graph_mode=1), StepVector(1, 1, graph_mode=1, idle=True)])),
    agree(matrix([StepVector(3, 3), StepVector(5, 5)])),
]

if __name__ == "__main__":
    counters = StepCounters(int(sys.argv[1]))
    for step in STEPS:
        counters.count(step, 0.5, 0)
    for method in ("mc2", "alltoall", "mc2"):
        counters.count_moe_step(method)
