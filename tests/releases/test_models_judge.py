# SPDX-License-Identifier: Apache-2.0
"""The judge of the models' table: what it calls clear, right and wrong. With transformers alone, no engine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.models import checkpoints, judge
from scripts.models.families import FAMILIES
from tests.support.installed import needs_transformers_5

pytestmark = needs_transformers_5

PROMPT = list(range(3, 23))


def test_a_choice_is_as_clear_as_its_last_expert_is_ahead_of_the_next() -> None:
    scores = torch.tensor([[0.0, 4.0, 3.0, 10.0], [1.0, 2.0, 3.0, 5.0]])
    with judge.RouterMargins(2) as routers:
        scores.topk(2, dim=-1)
    assert routers.smallest.tolist() == pytest.approx([0.1, 0.25])
    with judge.RouterMargins(2) as routers:
        torch.topk(scores, 4)  # all of them: nothing is chosen
        torch.topk(scores.repeat(2, 1), 1)  # two rows for each token are attention's
    assert routers.smallest.isinf().all()


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Eight tokens of the reference itself, and their log-probabilities."""
    folder = tmp_path_factory.mktemp("mixtral")
    family = FAMILIES["mixtral"]
    checkpoints.make(family, folder)
    model = (
        checkpoints.reference_class(family).from_pretrained(folder / checkpoints.REFERENCE, dtype=torch.float32).eval()
    )
    tokens: list[int] = []
    logprobs: list[float] = []
    with torch.inference_mode():
        for _ in range(8):
            last = model(torch.tensor([PROMPT + tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(last.argmax()))
            logprobs.append(float(last.max()))
    return folder, {"tokens": tokens, "logprobs": logprobs}


def test_the_references_own_answer_is_right_and_one_token_or_its_probability_makes_it_wrong(answer: Any) -> None:
    folder, good = answer
    family = FAMILIES["mixtral"]
    found = judge.verdict(family, folder, [PROMPT], [[good]])
    assert (found["outcome"], found["wrong"], found["error"]) == ("right", 0, 0.0)
    assert found["clear"] >= 4
    token = copy.deepcopy(good)
    token["tokens"][-1] = (token["tokens"][-1] + 1) % 512
    assert judge.verdict(family, folder, [PROMPT], [[token]])["outcome"] == "wrong"
    probability = copy.deepcopy(good)
    probability["logprobs"] = [value - 0.1 for value in good["logprobs"]]
    assert judge.verdict(family, folder, [PROMPT], [[probability]])["outcome"] == "wrong"
