# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding changes no token: with drafts from the prompt and from a drafter that has forwards of its own, greedy
tokens equal those of Hugging Face transformers, which knows nothing of drafts.

A drafter's steps are scheduled asynchronously where that is served, and in turn where the user asks for it; whichever it is,
the key lengths that attention takes from the host have to be those on the device, in every forward.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import draft_models, tiny_models
from tests.support.installed import HAS_ASYNCHRONOUS_DRAFTS, needs_kernel_registry, needs_runner_v2

from .scripts import RUNNERS, runs
from .traces import traced_workers

pytestmark = [needs_kernel_registry, pytest.mark.serve, pytest.mark.timeout(900)]

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
MTP = {"method": "mtp", "num_speculative_tokens": 3}
EAGLE3 = {"method": "eagle3", "num_speculative_tokens": 3}
METHODS = {"ngram": NGRAM, "mtp": MTP, "eagle3": EAGLE3}
GRAPHS = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [4, 8, 16, 32]}}
EAGER = {"enforce_eager": True}
IN_TURN = GRAPHS | {"async_scheduling": False}
FORMS = {"in graphs": GRAPHS, "eagerly": EAGER, "in graphs, in turn": IN_TURN}
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
        for form, arguments in FORMS.items()
        if (form == "in graphs" or layout != "tp 2") and (form != "in graphs, in turn" or method != "ngram")
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
    job: dict[str, Any] = {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": dp > 1,
        "prompts": [case.prompt for case in cases],
        "max_tokens": tiny_models.NEW_TOKENS,
        "many": 20,
        "arguments": {"speculative_config": settings, "disable_log_stats": False, **arguments},
    }
    if runner == "V1":
        job["arguments"]["worker_extension_cls"] = "tests.serve.lengths_worker.LengthsWorker"
        job |= {"watch": "watch", "ask": "seen"}
    trace = {"VLLM_ASCEND_PATCH_TRACE": str(tmp_path / "{rank}-{pid}.json")}
    result = run_engine(job, devices=tp * dp, **trace, **RUNNERS[runner])
    assert runs(runner, result["log"])
    expected = [case.answer for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        assert result[name] == expected, name
    if dp > 1:
        assert result["alone"] == expected[:2], "of one prompt, the other rank being idle"
        assert result["many_complete"]
    drafts = result["drafts"]
    assert 0 < drafts["accepted"] < drafts["draft"], f"drafts must come out both ways: {drafts}"
    wanted_so = method != "ngram" and arguments is not IN_TURN  # by vLLM itself
    asynchronous = wanted_so and HAS_ASYNCHRONOUS_DRAFTS and runner == "V1"
    assert ("async scheduling with drafts is switched off" in result["log"]) == (wanted_so and not asynchronous)
    if runner == "V1":
        seen = result["asked"][0]
        assert seen["asynchronous"] == asynchronous
        assert seen["wrong"] == seen["wrong in the drafter"] == 0 < seen["steps"], seen
        assert (seen["corrected"] > 0) == asynchronous, seen
    workers = traced_workers(tmp_path)
    assert len(workers) == tp * dp
    wanted = set() if arguments is EAGER else {"FULL", "PIECEWISE"}
    # Two ranks hardly ever find as many drafts for all of their requests.
    rare = {"FULL"} if method == "ngram" and dp > 1 else set()
    for worker in workers:
        replayed = {mode for mode in ("FULL", "PIECEWISE") if worker.modes[mode]}
        assert replayed - rare == wanted - rare, worker.modes
