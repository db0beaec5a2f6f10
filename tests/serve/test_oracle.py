# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of stock vLLM under the patch set equal those of Hugging Face transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.installed import needs_runner_v2

from .scripts import RUNNERS, runs

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

# (tensor parallel, data parallel, expert parallel)
LAYOUTS = {
    "one device": (1, 1, False),
    "tp 2": (2, 1, False),
    "dp 2 with ep": (1, 2, True),
    "tp 2 x dp 2 with ep": (2, 2, True),
}
# The default run takes layouts with one family each, TP in one of them; ``-m slow`` takes the rest.
DEFAULT = {("qwen2_moe", "one device"), ("mixtral", "dp 2 with ep"), ("qwen3_moe", "tp 2 x dp 2 with ep")}
DEFAULT_V2 = ("qwen3_moe", "dp 2 with ep")


def _marks(family: str, layout: str, runner: str) -> list[pytest.MarkDecorator]:
    if runner == "V2":
        return [needs_runner_v2, *([] if (family, layout) == DEFAULT_V2 else [pytest.mark.slow])]
    return [] if (family, layout) in DEFAULT else [pytest.mark.slow]


COMBINATIONS = [
    pytest.param(family, layout, runner, marks=_marks(family, layout, runner))
    for family in tiny_models.CONFIGS
    for layout in LAYOUTS
    for runner in RUNNERS
]


@pytest.mark.parametrize(("family", "layout", "runner"), COMBINATIONS)
def test_greedy_tokens_equal_transformers(
    family: str, layout: str, runner: str, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    tp, dp, ep = LAYOUTS[layout]
    checkpoint = checkpoints(family)
    cases = tiny_models.cases(checkpoint)
    job = {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": ep,
        "prompts": [case.prompt for case in cases],
        "max_tokens": tiny_models.NEW_TOKENS,
        "many": 50,
    }
    result = run_engine(job, devices=tp * dp, **RUNNERS[runner])
    assert runs(runner, result["log"])
    expected = [case.answer for case in cases]
    if dp == 1:
        assert result["tokens"] == expected
        assert result["again"] == expected
        assert result["cached"][-1] >= 256, "the shared prefix of two KV blocks was not found in the cache"
    else:
        assert result["alone"] == expected[:2]
        assert result["together"] == expected
        assert result["late"] == expected
        assert result["aborted_after"] >= 5
        assert result["many_complete"]
