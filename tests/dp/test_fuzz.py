# SPDX-License-Identifier: Apache-2.0
"""Random schedules through vLLM's real decision code and the real seams: no hang, all ranks agree with each other and with
what vLLM's own post-processing makes of their votes, one collective per step, or none through shared memory. See ``fuzz.py``
for replaying a seed."""

from __future__ import annotations

import os
import re

import pytest

from tests.support.processes import under_virtual_npu

SEED = int(os.environ.get("DP_FUZZ_SEED", "20261"))


def _fuzz(*parts: str, timeout: float) -> str:
    result = under_virtual_npu("-m", "tests.dp.fuzz", str(SEED), *parts, seconds=timeout)
    assert result.returncode == 0, f"DP_FUZZ_SEED={SEED}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result.stdout


def test_hundreds_of_schedules_in_2_4_and_8_processes() -> None:
    output = _fuzz("2:140", "2:80:shared", "4:110", "4:70:shared", "8:120", timeout=280)
    assert output.count("ranks agreed") == 5
    situations = re.search(r"^situations: (.+)$", output, re.MULTILINE)
    assert situations, output
    for situation in situations[1].split(", "):
        counts = [int(n) for n in re.findall(rf"{situation} (\d+)", output)]
        assert sum(counts) > 20, f"{situation} came up {counts} times only: the fuzz does not test it"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_schedules() -> None:
    assert _fuzz("2:1000", "2:1000:shared", "4:1500:shared", "8:800", timeout=1700).count("ranks agreed") == 4
