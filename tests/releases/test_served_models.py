# SPDX-License-Identifier: Apache-2.0
"""The table of models: what its rows say of a result file, that the project's own has every architecture and no fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.models.registry import architectures_of
from vllm_ascend_patch.releases import served_models

REGISTRY = """
_TEXT_GENERATION_MODELS = {
    "PlainForCausalLM": ("plain", "PlainForCausalLM"),
    "SparseForCausalLM": ("sparse", "SparseForCausalLM"),
    "SeesForCausalLM": ("sees", "SeesForCausalLM"),
    "OwnForCausalLM": ("vllm.models.own", "OwnForCausalLM"),
}
"""
SOURCES = {
    "vllm/model_executor/models/registry.py": REGISTRY,
    "vllm/model_executor/models/plain.py": "class PlainForCausalLM:\n    layer = Linear\n",
    "vllm/model_executor/models/sparse.py": (
        "def layer():\n    return FusedMoE()\n\nclass SparseForCausalLM:\n    def make(self):\n        layer()\n"
    ),
    "vllm/model_executor/models/sees.py": "class SeesForCausalLM:\n    text = load(architectures=['SparseForCausalLM'])\n",
    "vllm/models/own/__init__.py": "",
    "vllm/models/own/nvidia/model.py": "from x import FusedMoEFactory\n",
}


def test_an_architecture_has_experts_when_something_that_it_names_makes_them() -> None:
    assert sorted(architectures_of(SOURCES)) == ["OwnForCausalLM", "SeesForCausalLM", "SparseForCausalLM"]


def family(architecture: str, **layouts: dict[str, str]) -> dict[str, object]:
    found = {name.replace("_", " "): layout for name, layout in layouts.items()}
    return {"architectures": [architecture], "feature": "f", "dtype": "float16", "layouts": found, "commit": "c"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    file.write_text(
        json.dumps(
            {
                "registries": {"1.0": ["A", "B"], "1.1": ["A", "B", "New"]},
                "untried": {"B": "no checkpoint"},
                "families": {
                    "a": family("A", one={"outcome": "right"}, two_ranks={"outcome": "wrong", "why": "2 of 9 differ"}),
                    "a_old": family("A", one={"outcome": "refused", "why": "m: not supported"}),
                    "other": family("Other", one={"outcome": "runs"}),
                },
            }
        )
    )
    monkeypatch.setattr(served_models, "RESULTS", file)


def test_rows_say_what_came_of_each_layout_and_which_architectures_nobody_tried(results: None) -> None:
    found = [(row.architecture, row.releases, row.standing, row.why) for row in served_models.rows()]
    assert found == [
        ("A", ("1.0", "1.1"), "right: one; WRONG: two ranks; float16", "2 of 9 differ"),
        ("A", ("1.0", "1.1"), "refused", "m: not supported"),
        ("B", ("1.0", "1.1"), "not tried", "no checkpoint"),
        ("New", ("1.1",), "not tried", "nothing was run of it"),
        ("Other", (), "runs, tokens not checked: one", ""),
    ]


def test_the_doctors_words_are_the_rows(results: None) -> None:
    assert served_models.words("A") == "right: one; WRONG: two ranks; float16 (f); refused (f)"
    assert served_models.words("B") == "not tried: no checkpoint"
    assert served_models.words("Nobody") == "not tried"


def test_no_row_of_the_projects_table_crashes_hangs_or_is_wrong() -> None:
    faults = ("WRONG", "CRASH", "HANGS", "not judged", "not clear")
    rows = list(served_models.rows())
    assert [row for row in rows if any(word in row.standing for word in faults)] == []
    assert len([row for row in rows if row.standing.startswith("right")]) >= 17
