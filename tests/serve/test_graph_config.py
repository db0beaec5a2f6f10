# SPDX-License-Identifier: Apache-2.0
"""Which compile and graph mode a user gets, by default and for every setting, and that changes are said in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.installed import HAS_GRAPHS_OF_WHOLE_STEPS, needs_kernel_registry, needs_one_coordination
from tests.support.processes import result_of
from vllm_ascend_patch.commands import plan

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]

SIZES = [1, 2, 4, 8, 16]
SPREAD = [1, 8, 32, 56, 80, 104, 128, 152, 176, 192, 216, 240, 272, 320, 368, 416, 464, 512]
"""Of vLLM's 51 sizes, as many as 94 layers in pieces leave streams for."""
WITH_DRAFTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48]
"""Eight requests decode 24 tokens with two drafts each; whole steps are of a multiple of three."""
PIECES = {"mode": "VLLM_COMPILE", "backend": "eager", "graphs": "PIECEWISE", "sizes": SIZES}
GRAPHS = PIECES | ({"graphs": "FULL_AND_PIECEWISE"} if HAS_GRAPHS_OF_WHOLE_STEPS else {})
WHOLE_STEPS = PIECES | ({"graphs": "FULL_DECODE_ONLY"} if HAS_GRAPHS_OF_WHOLE_STEPS else {})
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
        ("pieces", PIECES),
        ("full decode graphs", WHOLE_STEPS),
        ("no graphs", COMPILED),
        ("not compiled", EAGER),
        ("torch.compile alone", WHOLE_STEPS),  # vLLM itself leaves pieces out of the mode then
        ("inductor", GRAPHS),
        ("own sizes", GRAPHS | {"sizes": [2, 4]}),
        ("forced alltoall", COMPILED),
        pytest.param("drafts from the prompt", GRAPHS | {"sizes": WITH_DRAFTS}, marks=needs_kernel_registry),
        pytest.param("many layers", PIECES | {"sizes": SPREAD}, marks=needs_one_coordination),
    ],
)
def test_a_setting_gives_this_mode(
    resolved: tuple[dict[str, Any], str], setting: str, expected: dict[str, Any]
) -> None:
    assert resolved[0][setting] == expected


@pytest.mark.parametrize(
    "message",
    [
        "cudagraph_mode is FULL_AND_PIECEWISE instead of FULL: only steps whose requests all have the same number of tokens"
        if HAS_GRAPHS_OF_WHOLE_STEPS
        else "cudagraph_mode is PIECEWISE instead of FULL: graphs of whole steps are captured with vLLM >=0.15",
        "mode is VLLM_COMPILE instead of STOCK_TORCH_COMPILE: graphs are captured between the attention operators",
        "backend is eager instead of inductor: stock torch has no Inductor for NPUs",
        pytest.param(
            "graphs are captured for 18 of 51 batch sizes (1, 8, 32, 56, 80, 104, 128, 152, 176, 192, 216, 240, 272, 320, "
            "368, 416, 464, 512): with 94 layers all of them would take 4845 of a device's 1984 streams",
            marks=needs_one_coordination,
        ),
        f"cudagraph_mode is NONE instead of {GRAPHS['graphs']}: VLLM_ASCEND_PATCH_MOE_COMM=alltoall reads sizes",
    ],
)
def test_what_was_changed_is_said(resolved: tuple[dict[str, Any], str], message: str) -> None:
    assert message in resolved[1]


def test_no_forward_looks_for_a_compiled_artifact(resolved: tuple[dict[str, Any], str]) -> None:
    """None is ever written with the backend ``eager``, and vLLM hashes its configuration for it in each forward."""
    assert resolved[0]["artifacts"] is False


def test_the_plan_command_assumes_what_a_serve_without_options_gets(resolved: tuple[dict[str, Any], str]) -> None:
    found = resolved[0]["largest graphs"]
    assert found[0] == [plan.MAX_NUM_BATCHED_TOKENS, plan.MAX_NUM_SEQS, 512]
    for tokens, requests, largest in found:
        assert plan.default_captured_tokens(tokens, requests) == largest, (tokens, requests)
