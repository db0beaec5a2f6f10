# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors checkpoints with W4A8 experts answer as transformers does with the checkpoint's integers and with
activations rounded as the format says; their parameters hold what was loaded last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import modelslim_models, tiny_models, w4a8_models
from tests.support.installed import needs_modelslim
from tests.support.processes import result_of
from tests.support.tiny_models import Case

from .scripts import chosen, job_for, run_script

# Served from the same release on as ModelSlim's checkpoints.
pytestmark = [pytest.mark.serve, pytest.mark.timeout(900), pytest.mark.slow, needs_modelslim]

FAMILY = "qwen3_moe_int4"
TOKENS = 4
LENGTHS = (1, 19, 64, 150)


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return w4a8_models.make(checkpoints(FAMILY), tmp_path_factory.mktemp("w4a8"))


@pytest.fixture(scope="module")
def cases(checkpoints: Callable[[str], Path], checkpoint: Path) -> list[Case]:
    """Prompts with the oracle's answers, which take longer than an engine's."""
    oracle = w4a8_models.oracle(checkpoints(FAMILY), checkpoint)
    return modelslim_models.clear_cases(oracle, LENGTHS, TOKENS)


@pytest.mark.parametrize(
    ("tp", "dp", "method", "graphs"),
    [
        (1, 1, None, False),
        (1, 1, None, True),
        (2, 1, None, False),
        (1, 2, "mc2", True),
        (1, 2, "alltoall", False),
    ],
)
def test_tokens_equal_transformers_with_the_checkpoints_integers(
    tp: int,
    dp: int,
    method: str | None,
    graphs: bool,
    checkpoint: Path,
    cases: list[Case],
    run_engine: Callable[..., Any],
) -> None:
    answers = [case.answer for case in cases]
    options = {"enforce_eager": not graphs}
    job = job_for(checkpoint, [case.prompt for case in cases], TOKENS, tp=tp, dp=dp, arguments=options)
    if method is None:
        result = run_engine(job | {"ep": False}, devices=tp)
        assert result["tokens"] == answers
    else:
        result = run_engine(job, devices=dp, VLLM_ASCEND_PATCH_MOE_COMM=method)
        assert result["together"] == answers
        assert chosen(result["log"]) == {method}


def test_parameters_hold_what_was_loaded_last_with_the_bias_that_follows_from_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    second = w4a8_models.make(tiny_models.make(FAMILY, tmp_path, 12), tmp_path)
    rounds = [("reload", second), ("push", checkpoint), ("push_one_by_one", second), ("reload", checkpoint)]
    job = {
        "w4a8": {
            "first": str(checkpoint),
            "second": str(second),
            "start": [],
            "rounds": [(how, str(path)) for how, path in rounds],
            "dtype": "float16",
        }
    }
    done = run_script("tests.serve.weights_script", text=json.dumps(job), devices=1, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    found = result_of(done)["w4a8"]
    assert found["differ"] > 8
    for each in found["rounds"]:
        assert each == {"error": None, "wrong": [], "moved": False, "more": each["more"]}
        assert each["more"] <= 0
