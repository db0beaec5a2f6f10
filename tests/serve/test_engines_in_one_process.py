# SPDX-License-Identifier: Apache-2.0
"""Several engines in one process: two side by side, asked in turn, and one of another tensor parallel size once they are
shut down, as trainers and notebooks have them.

Each keeps its own process groups, selectors and mask: tokens are transformers' for every engine, whichever was built last.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.processes import result_of

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = "tests.serve.engines_script"
FAMILIES = ("qwen3_moe", "mixtral")


def test_each_engine_of_a_process_answers_as_if_it_were_alone(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    cases = {family: tiny_models.cases(checkpoints(family)) for family in FAMILIES}
    models = [
        {"path": str(checkpoints(family)), "prompts": [case.prompt for case in cases[family]]} for family in FAMILIES
    ]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"models": models, "max_tokens": tiny_models.NEW_TOKENS}))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = run_script(*torchrun, SCRIPT, str(job), text="", devices=2, folder=tmp_path, seconds=800)
    assert done.returncode == 0, done.stdout[-6000:]
    found = result_of(done)
    expected = {family: [case.answer for case in cases[family]] for family in FAMILIES}
    for name, family in {
        "first": "qwen3_moe",
        "second, beside the first": "mixtral",
        "first, beside the second": "qwen3_moe",
        "third, with another tensor parallel size": "qwen3_moe",
    }.items():
        assert found[name]["tokens"] == expected[family], name
        assert len(found[name]["experts"]) == 1, f"{name} sees another engine's layers: {found[name]['experts']}"
    assert [found[name]["mask"] for name in found] == [2, 8, 2, 4], (
        "a mask is as long as its own engine's largest graph"
    )
    assert [found[name]["tp"] for name in found] == [[2], [2], [2], [1]]
