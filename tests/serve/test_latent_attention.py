# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention (MLA): greedy tokens equal those of Hugging Face transformers on the same weights.

Prompts are longer than a step, so they are prefilled in chunks over context in the cache, and two of them share a prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import latent_models, tiny_models
from tests.support.installed import needs_latent_attention

pytestmark = [needs_latent_attention, pytest.mark.serve, pytest.mark.timeout(900)]

# (tensor parallel, data parallel)
LAYOUTS = {"one device": (1, 1), "tp 2": (2, 1), "dp 2 with ep": (1, 2), "tp 2 x dp 2 with ep": (2, 2)}
COMBINATIONS = [
    pytest.param(family, layout, marks=[] if (family, layout) == ("deepseek_v3", "tp 2") else pytest.mark.slow)
    for family in latent_models.CONFIGS
    for layout in LAYOUTS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latent")


@pytest.mark.parametrize(("family", "layout"), COMBINATIONS)
def test_greedy_tokens_equal_transformers(
    family: str, layout: str, folder: Path, run_engine: Callable[..., Any]
) -> None:
    serve(latent_models.make(family, folder), *LAYOUTS[layout], run_engine)


def serve(
    checkpoint: Path, tp: int, dp: int, run_engine: Callable[..., Any], soc: str = "A2", **arguments: Any
) -> dict[str, Any]:
    """Run an engine on the checkpoint's cases, demand transformers' tokens, return what the engine reported."""
    cases = tiny_models.cases(checkpoint)
    job = {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": dp > 1,
        "prompts": [case.prompt for case in cases],
        "max_tokens": tiny_models.NEW_TOKENS,
        "many": 20,
        "arguments": arguments,
    }
    result = run_engine(job, devices=tp * dp, soc=soc)
    expected = [case.answer for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        assert result[name] == expected, name
    if dp == 1:
        assert result["cached"][-1] >= 256, "the shared prefix of two KV blocks was not found in the cache"
    else:
        assert result["many_complete"]
    return result


@pytest.mark.slow
def test_captured_graphs(folder: Path, run_engine: Callable[..., Any]) -> None:
    """Padded rows of a graph are neither written to the cache nor left to the MoE layers as they were in memory."""
    serve(latent_models.make("deepseek_v3", folder), 1, 1, run_engine, enforce_eager=False)


@pytest.mark.slow
def test_drafts_of_a_prediction_layer(folder: Path, run_engine: Callable[..., Any]) -> None:
    """Several query tokens per request in decoding, and a drafter whose attention is latent, too."""
    cases = tiny_models.cases(latent_models.make("deepseek_v3", folder))
    job = {
        "model": str(latent_models.make_with_drafter(folder)),
        "tp": 1,
        "dp": 1,
        "ep": False,
        "prompts": [case.prompt for case in cases],
        "max_tokens": tiny_models.NEW_TOKENS,
        "arguments": {
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 2},
            "disable_log_stats": False,
        },
    }
    result = run_engine(job, devices=1)
    expected = [case.answer for case in cases]
    assert result["tokens"] == expected
    assert result["again"] == expected
    assert 0 < result["drafts"]["accepted"] < result["drafts"]["draft"]
