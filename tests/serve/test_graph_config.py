# SPDX-License-Identifier: Apache-2.0
"""Which compile and graph mode a user gets, by default and for every setting, and that changes are said in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import result_of
from vllm_ascend_patch.commands import plan

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]

SIZES = [1, 2, 4, 8, 16]
GRAPHS = {"mode": "VLLM_COMPILE", "backend": "eager", "graphs": "PIECEWISE", "sizes": SIZES}
COMPILED = {"mode": "VLLM_COMPILE", "backend": "eager", "graphs": "NONE", "sizes": []}
EAGER = {"mode": "NONE", "backend": "eager", "graphs": "NONE", "sizes": []}


@pytest.fixture(scope="module")
def resolved(
    checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("config")
    checkpoint = str(checkpoints("mixtral"))
    done = run_script("tests.serve.graph_config_script", checkpoint, text="", devices=2, folder=folder, seconds=200)
    return result_of(done), done.stdout


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("default", GRAPHS),
        ("enforce eager", EAGER),
        ("full graphs", GRAPHS),
        ("full decode graphs", GRAPHS),
        ("no graphs", COMPILED),
        ("not compiled", EAGER),
        ("torch.compile alone", GRAPHS),
        ("inductor", GRAPHS),
        ("own sizes", GRAPHS | {"sizes": [2, 4]}),
        ("forced alltoall", COMPILED),
    ],
)
def test_a_setting_gives_this_mode(
    resolved: tuple[dict[str, Any], str], setting: str, expected: dict[str, Any]
) -> None:
    assert resolved[0][setting] == expected


@pytest.mark.parametrize(
    "message",
    [
        "cudagraph_mode is PIECEWISE instead of FULL: attention takes its lengths from the host",
        "cudagraph_mode is PIECEWISE instead of FULL_DECODE_ONLY: attention takes its lengths from the host",
        "mode is VLLM_COMPILE instead of STOCK_TORCH_COMPILE: graphs are captured between the attention operators",
        "backend is eager instead of inductor: stock torch has no Inductor for NPUs",
        "cudagraph_mode is NONE instead of PIECEWISE: VLLM_ASCEND_PATCH_MOE_COMM=alltoall reads sizes from the device",
    ],
)
def test_what_was_changed_is_said(resolved: tuple[dict[str, Any], str], message: str) -> None:
    assert message in resolved[1]


def test_the_plan_command_assumes_what_a_serve_without_options_gets(resolved: tuple[dict[str, Any], str]) -> None:
    found = resolved[0]["largest graphs"]
    assert found[0] == [plan.MAX_NUM_BATCHED_TOKENS, plan.MAX_NUM_SEQS, 512]
    for tokens, requests, largest in found:
        assert plan.default_captured_tokens(tokens, requests) == largest, (tokens, requests)
