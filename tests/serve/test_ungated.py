# SPDX-License-Identifier: Apache-2.0
"""vLLM's configuration of experts without a gate, which it refuses on devices other than its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.installed import vllm_file
from tests.support.processes import result_of

from .scripts import run_script

_CONFIG = vllm_file("model_executor", "layers", "fused_moe", "config.py")
pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,  # a process of its own
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (_CONFIG.exists() and "is_act_and_mul=False" in _CONFIG.read_text()),
        reason="this vLLM refuses experts without a gate elsewhere, in the middle of other work: they are not served",
    ),
]


def test_experts_without_a_gate_are_configured(tmp_path: Path) -> None:
    done = run_script("tests.serve.ungated_script", text="", devices=1, folder=tmp_path, seconds=500)
    accepted = result_of(done)
    assert accepted["relu2_no_mul"]
    assert all(accepted.values())
