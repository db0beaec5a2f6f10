# SPDX-License-Identifier: Apache-2.0
"""Kinds of attention and sizes of a KV cache that the usual tiny models do not have: tokens equal transformers'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.processes import result_of

from .scripts import ALSO_ON_V2, RUNNERS, job_for, run_script, runs

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

# Prompt lengths and engine arguments. Llama 4's go over the ends of its chunks, in a prompt and while decoding.
FORMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "granite_nope": ((5, 140), {}),
    "llama4": (
        (5, 124, 300),
        {"override_generation_config": {"attn_temperature_tuning": True}},  # else vLLM does without, as short as this
    ),
    # shorter and longer than the window, over the end of a block and of a chunk of the prompt; decoding crosses both
    "mixtral_window": ((3, 7, 124, 300), {}),
    "granite_sinks": ((3, 7, 124, 300), {"dtype": "bfloat16"}),
    "gpt_oss": ((3, 7, 140), {"dtype": "bfloat16"}),
    "gemma4": ((5, 140), {}),
    # pieces of 128 tokens and one of a token, after which states begin from what earlier pieces left
    "qwen3_next": ((1, 7, 129, 300), {"mamba_ssm_cache_dtype": "float32"}),
    "mixtral_one_layer": ((5, 140), {"gpu_memory_utilization": 0.9}),
}
BLOCK = 128 * 2 * 2 * 32  # elements of a block of the one-layer model: tokens x (key, value) x KV heads x head size


@pytest.fixture(scope="module", params=ALSO_ON_V2)
def served(
    request: pytest.FixtureRequest, checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, list[list[int]]], str]:
    """What each form was answered by one process on a device of 12 GiB, what transformers answers, and the log."""
    expected, jobs = {}, []
    for form, (lengths, arguments) in FORMS.items():
        checkpoint = checkpoints(form)
        cases = tiny_models.few_cases(checkpoint, lengths)
        expected[form] = [case.answer for case in cases]
        jobs.append({"model": str(checkpoint), "prompts": [case.prompt for case in cases], "arguments": arguments})
    done = run_script(
        "tests.serve.forms_script",
        text=json.dumps(jobs),
        devices=1,
        folder=tmp_path_factory.mktemp("forms"),
        memory="12GiB",
        # no process per engine: starting one is what takes time
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **RUNNERS[request.param]},
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert runs(request.param, done.stdout)
    return dict(zip(FORMS, result_of(done), strict=True)), expected, done.stdout


@pytest.mark.parametrize("form", FORMS)
def test_tokens_equal_transformers(form: str, served: Any) -> None:
    answers, expected, _ = served
    assert answers[form].get("error") is None
    assert answers[form]["tokens"] == expected[form]


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "dp"), [(2, 1), (1, 2)])
def test_windows_and_sinks_over_ranks_and_in_graphs(
    tp: int, dp: int, checkpoints: Callable[[str], Path], run_engine: Callable[..., Any]
) -> None:
    """Sinks are divided with the heads; decode steps are captured whole."""
    checkpoint = checkpoints("granite_sinks")
    cases = tiny_models.few_cases(checkpoint, FORMS["granite_sinks"][0])
    arguments = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [2, 8]}}
    job = job_for(checkpoint, [case.prompt for case in cases], 8, tp, dp, arguments) | {"dtype": "bfloat16"}
    result = run_engine(job, devices=2)
    answers = [case.answer for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        assert result[name] == answers, name


def test_a_cache_that_the_operator_could_not_index_is_capped_and_the_log_says_so(served: Any) -> None:
    answers, _, log = served
    blocks = answers["mixtral_one_layer"].get("blocks")
    assert blocks == (2**31 - 1) // BLOCK
    assert re.search(rf"KV cache: memory was found for \d+ blocks, {blocks} blocks are used", log)
