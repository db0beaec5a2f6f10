# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding changes no token: with drafts from the prompt and from a drafter that has forwards of its own, greedy
tokens equal those of Hugging Face transformers, which knows nothing of drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import draft_models, tiny_models
from tests.support.installed import needs_kernel_registry

from .scripts import ALSO_ON_V2, RUNNERS, runs

pytestmark = [needs_kernel_registry, pytest.mark.serve, pytest.mark.timeout(900)]

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
MTP = {"method": "mtp", "num_speculative_tokens": 3}
METHODS = {"ngram": NGRAM, "mtp": MTP}
# (method, data-parallel ranks, with expert parallelism)
COMBINATIONS = [
    pytest.param("ngram", 1, marks=pytest.mark.slow),
    pytest.param("mtp", 1, marks=pytest.mark.slow),
    pytest.param("ngram", 2, marks=pytest.mark.slow),
    pytest.param("mtp", 2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafters")


@pytest.mark.parametrize(("method", "ranks"), COMBINATIONS)
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_greedy_tokens_with_drafts_equal_transformers(
    runner: str, method: str, ranks: int, folder: Path, run_engine: Callable[..., Any]
) -> None:
    checkpoint = draft_models.make(folder)
    cases = tiny_models.cases(checkpoint)
    job = {
        "model": str(checkpoint),
        "tp": 1,
        "dp": ranks,
        "ep": ranks > 1,
        "prompts": [case.prompt for case in cases],
        "max_tokens": tiny_models.NEW_TOKENS,
        "many": 20,
        "arguments": {"speculative_config": METHODS[method], "disable_log_stats": False},
    }
    result = run_engine(job, devices=ranks, **RUNNERS[runner])
    assert runs(runner, result["log"])
    expected = [case.answer for case in cases]
    for name in ("tokens", "again") if ranks == 1 else ("together", "late"):
        assert result[name] == expected, name
    if ranks > 1:
        assert result["many_complete"]
    drafts = result["drafts"]
    assert 0 < drafts["accepted"] < drafts["draft"], f"drafts must come out both ways: {drafts}"
