# SPDX-License-Identifier: Apache-2.0
"""Drafts with asynchronous scheduling: a step is prepared before it is known which drafts of the step before were accepted.

Tokens equal transformers', and the key lengths that attention takes from the host are those on the device in every forward,
while requests join, leave, are preempted and resumed. That counting all drafts as accepted would be seen is part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import latent_models, tiny_models
from tests.support.installed import needs_asynchronous_drafts
from tests.support.tiny_models import Case

from .test_speculative import GRAPHS, drafting

pytestmark = [needs_asynchronous_drafts, pytest.mark.serve, pytest.mark.slow, pytest.mark.timeout(900)]

WORKER = "tests.serve.lengths_worker.LengthsWorker"
# Requests grow out of a block of 128 tokens while they decode, and there are not blocks enough for all of them.
LENGTHS = (121, 124, 127, 119, 126, 123, 125, 120, 5, 118)
SHORT_OF_BLOCKS = {"num_gpu_blocks_override": 8, "max_num_seqs": 5, "enable_prefix_caching": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafters")


def latent_drafting(folder: Path) -> tuple[Path, list[Case], dict[str, Any]]:
    """A checkpoint with latent attention, its cases, and vLLM's configuration of its drafts."""
    cases = tiny_models.few_cases(latent_models.make("deepseek_v3", folder), LENGTHS)
    return latent_models.make_with_drafter(folder), cases, {"method": "mtp", "num_speculative_tokens": 2}


def job_of(
    checkpoint: Path, cases: list[Case], settings: dict[str, Any], dp: int = 1, **arguments: Any
) -> dict[str, Any]:
    return {
        "model": str(checkpoint),
        "tp": 1,
        "dp": dp,
        "ep": dp > 1,
        "prompts": [case.prompt for case in cases],
        "max_tokens": len(cases[0].answer),
        "many": 20,
        "watch": "watch",
        "ask": "seen",
        "arguments": {
            "speculative_config": settings,
            "disable_log_stats": False,
            "distributed_executor_backend": "uni",
            "worker_extension_cls": WORKER,
            **arguments,
        },
    }


@pytest.mark.parametrize("graphs", [{}, GRAPHS], ids=["eagerly", "in graphs"])
@pytest.mark.parametrize("method", ["eagle3", "mtp", "latent mtp"])
def test_requests_that_join_leave_and_are_preempted(
    method: str, graphs: dict[str, Any], folder: Path, run_engine: Callable[..., Any]
) -> None:
    if method == "latent mtp":
        checkpoint, cases, settings = latent_drafting(folder)
    else:
        checkpoint, settings = drafting(method, folder)
        cases = tiny_models.few_cases(checkpoint, LENGTHS)
    result = run_engine(job_of(checkpoint, cases, settings, **SHORT_OF_BLOCKS, **graphs), devices=1)
    expected = [case.answer for case in cases]
    seen = result["asked"][0]
    assert seen["asynchronous"]
    assert seen["resumed"] > 0, "no request was preempted: nothing of that was tried"
    assert seen["corrected"] > 0, "no draft was refused: nothing was corrected"
    assert seen["wrong"] == seen["wrong in the drafter"] == 0, seen
    for name in ("tokens", "again"):
        assert result[name] == expected, name
    assert 0 < result["drafts"]["accepted"] < result["drafts"]["draft"]


@pytest.mark.parametrize("method", ["eagle3", "mtp"])
def test_ranks_agree_where_a_request_is_about_to_be_too_long_for_the_drafter(
    method: str, folder: Path, run_engine: Callable[..., Any]
) -> None:
    """Whether a drafter runs is foreseen from the bound of the longest request, and decided from it, too."""
    checkpoint, settings = drafting(method, folder)
    cases = tiny_models.cases(checkpoint)
    longest = max(len(case.prompt) + len(case.answer) for case in cases)
    job = job_of(checkpoint, cases, settings, dp=2, max_model_len=longest)
    result = run_engine(job, devices=2)
    expected = [case.answer for case in cases]
    for name in ("together", "late"):
        assert result[name] == expected, name
    seen = result["asked"][0]
    assert seen["asynchronous"]
    assert seen["wrong"] == seen["wrong in the drafter"] == 0, seen
    assert 0 < result["drafts"]["accepted"] < result["drafts"]["draft"]
