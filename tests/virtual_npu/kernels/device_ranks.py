# SPDX-License-Identifier: Apache-2.0
"""Run under the launcher by test_on_device.py: dispatch and combine of torch_npu over hccl, one virtual NPU per process.

The outputs of every dispatch are compared with the Meta kernel on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_ascend_patch.virtual_npu.profile import current

from . import world


def test_round_trips(tmp_path: Path) -> None:
    a2 = current().soc == "A2"
    base: dict[str, Any] = {"a2": a2, "hidden": 64 if a2 else 1024}
    cases = {
        "equal batches": base | {"batches": [5, 5]},
        "uneven batches": base | {"batches": [7, 1]},
        "masked tokens": base | {"batches": [6, 6], "active": [2, 0]},
        "int8 on the way out": base | {"batches": [4, 4], "quant_mode": 2},
    }
    world.succeed(2, "round_trips", current().soc, device=True, cases=cases)


def test_a_rank_that_does_not_call_is_named(tmp_path: Path) -> None:
    a2 = current().soc == "A2"
    outcome = world.run(
        2,
        "broken",
        current().soc,
        device=True,
        timeout=4,
        changes={1: {"absent": True}},
        a2=a2,
        hidden=64 if a2 else 1024,
    )
    assert "npu_moe_distribute_dispatch_v2: rank 1 of 2 did not make this call" in str(outcome[0][0])
