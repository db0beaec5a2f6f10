# SPDX-License-Identifier: Apache-2.0
"""Model runner V2 answers as V1 does, whatever is asked of the sampler, and launches few operators for a step.

What both runners prove alike is proved by the other tests of this folder, with the runner as a parameter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.installed import needs_runner_v2
from tests.support.processes import result_of, under_virtual_npu

from .scripts import RUNNERS, run_script

pytestmark = [needs_runner_v2, pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(900)]

LENGTH = 6
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": LENGTH}
SAME: dict[str, dict[str, Any]] = {
    "greedy": {},
    "log-probabilities": {"logprobs": 3, "prompt_logprobs": 2},
    "allowed": {"allowed_token_ids": [3, 5, 8, 13, 21], "logprobs": 1},
    "bias": {"logit_bias": {7: 30.0, 9: 29.5}},
    "no early end": {"min_tokens": 4, "stop_token_ids": list(range(100))},
    "penalties": {"repetition_penalty": 1.8, "frequency_penalty": 0.7, "presence_penalty": 0.4},
}
"""Greedy answers, which do not depend on the runner's random numbers."""
SEEDED: dict[str, Any] = {
    "temperature": 1.3,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.01,
    "seed": 11,
    "max_tokens": LENGTH,
}


@pytest.fixture(scope="module")
def answers(
    checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[dict[str, Any]]]]:
    """What each runner answered, by sampling parameters in the order of ``SAME``, then twice with a seed."""
    checkpoint = checkpoints("qwen3_moe")
    prompts = [case.prompt for case in tiny_models.few_cases(checkpoint, (5, 12, 150))]
    parameters = [{**GREEDY, **changes} for changes in SAME.values()] + [SEEDED, SEEDED]
    job = {"model": str(checkpoint), "prompts": prompts, "parameters": parameters}
    found = {}
    for runner, environment in RUNNERS.items():
        folder = tmp_path_factory.mktemp(runner)
        module = "tests.serve.sampling_script"
        done = run_script(module, text=json.dumps(job), devices=1, folder=folder, environment=environment)
        found[runner] = result_of(done)
    return found


@pytest.mark.parametrize("name", SAME)
def test_greedy_answers_are_those_of_model_runner_v1(answers: dict[str, Any], name: str) -> None:
    index = list(SAME).index(name)
    for one, other in zip(answers["V1"][index], answers["V2"][index], strict=True):
        assert one["tokens"] == other["tokens"]
        for kind in ("logprobs", "prompt"):
            assert len(one[kind]) == len(other[kind])
            for expected, found in zip(one[kind], other[kind], strict=True):
                if expected is None:
                    assert found is None
                    continue
                assert found.keys() == expected.keys()
                for token, (logprob, rank) in expected.items():
                    assert found[token] == [pytest.approx(logprob, abs=1e-3), rank]


def test_a_seed_repeats_itself(answers: dict[str, Any]) -> None:
    first, again = ([answer["tokens"] for answer in answers["V2"][index]] for index in (-2, -1))
    assert first == again
    assert first != [answer["tokens"] for answer in answers["V2"][0]], "random sampling gave the greedy answers"


def test_a_greedy_decode_step_launches_at_most_100_operators_besides_the_model(
    checkpoints: Callable[[str], Path],
) -> None:
    checkpoint = str(checkpoints("qwen3_moe"))
    environment = {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    counts = result_of(under_virtual_npu("-m", "tests.npu.decode_operators", checkpoint, environment=environment))
    assert 0 < counts["total"] <= 100, counts
