# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding changes no token: with drafts from the prompt and from a drafter that has forwards of its own, greedy
tokens equal those of Hugging Face transformers, which knows nothing of drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import draft_models, tiny_models
from tests.support.installed import needs_kernel_registry, needs_runner_v2

from .scripts import RUNNERS, runs
from .traces import traced_workers

pytestmark = [needs_kernel_registry, pytest.mark.serve, pytest.mark.timeout(900)]

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
MTP = {"method": "mtp", "num_speculative_tokens": 3}
EAGLE3 = {"method": "eagle3", "num_speculative_tokens": 3}
METHODS = {"ngram": NGRAM, "mtp": MTP, "eagle3": EAGLE3}
GRAPHS = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [4, 8, 16, 32]}}
EAGER = {"enforce_eager": True}
LAYOUTS = {"one device": (1, 1), "tp 2": (2, 1), "dp 2 with ep": (1, 2)}
COMBINATIONS = [
    *(
        pytest.param(
            method,
            *LAYOUTS[layout],
            arguments,
            "V1",
            id=f"{method}, {layout}, {form}",
            marks=[] if (method, layout, form) == ("mtp", "dp 2 with ep", "in graphs") else pytest.mark.slow,
        )
        for method in METHODS
        for layout in LAYOUTS
        for form, arguments in (("in graphs", GRAPHS), ("eagerly", EAGER))
        if form == "in graphs" or layout != "tp 2"
    ),
    *(
        pytest.param(
            method,
            *LAYOUTS[layout],
            EAGER,
            "V2",
            id=f"{method}, {layout}, eagerly, V2",
            marks=[needs_runner_v2, pytest.mark.slow],
        )
        for method in ("ngram", "mtp")
        for layout in ("one device", "dp 2 with ep")
    ),
]


def drafting(method: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint that lets drafts of ``method`` come out both ways, and vLLM's configuration of them."""
    if method == "eagle3":
        checkpoint, drafter = draft_models.make_for_eagle3(folder)
        return checkpoint, METHODS[method] | {"model": str(drafter)}
    return draft_models.make(folder), METHODS[method]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafters")


@pytest.mark.parametrize(("method", "tp", "dp", "arguments", "runner"), COMBINATIONS)
def test_greedy_tokens_with_drafts_equal_transformers(
    method: str,
    tp: int,
    dp: int,
    arguments: dict[str, Any],
    runner: str,
    folder: Path,
    run_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Where all requests have as many drafts, the step that verifies them is one graph."""
    checkpoint, settings = drafting(method, folder)
    cases = tiny_models.cases(checkpoint)
    job = {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": dp > 1,
        "prompts": [case.prompt for case in cases],
        "max_tokens": tiny_models.NEW_TOKENS,
        "many": 20,
        "arguments": {"speculative_config": settings, "disable_log_stats": False, **arguments},
    }
    trace = {"VLLM_ASCEND_PATCH_TRACE": str(tmp_path / "{rank}-{pid}.json")}
    result = run_engine(job, devices=tp * dp, **trace, **RUNNERS[runner])
    assert runs(runner, result["log"])
    expected = [case.answer for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        assert result[name] == expected, name
    if dp > 1:
        assert result["many_complete"]
    drafts = result["drafts"]
    assert 0 < drafts["accepted"] < drafts["draft"], f"drafts must come out both ways: {drafts}"
    workers = traced_workers(tmp_path)
    assert len(workers) == tp * dp
    wanted = {"FULL", "PIECEWISE"} if arguments is GRAPHS else set()
    # Two ranks hardly ever find as many drafts for all of their requests.
    rare = {"FULL"} if method == "ngram" and dp > 1 else set()
    for worker in workers:
        replayed = {mode for mode in ("FULL", "PIECEWISE") if worker.modes[mode]}
        assert replayed - rare == wanted - rare, worker.modes
