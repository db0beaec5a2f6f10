# SPDX-License-Identifier: Apache-2.0
"""Weights that are loaded again are the weights: tokens are the new checkpoint's, nothing is held twice, graphs go on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support import tiny_models, w8a8_models
from tests.support.installed import needs_int8_experts
from tests.support.processes import result_of
from tests.support.tiny_models import Case

from .scripts import job_for, refused, run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

FAMILY = "qwen3_moe"
SECOND_SEED = 12
EPLB = {"eplb_config": {"num_redundant_experts": 4, "window_size": 4, "step_interval": 8}}


@pytest.fixture
def pair(checkpoints: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of one model."""
    return checkpoints(FAMILY), tiny_models.make(FAMILY, tmp_path, SECOND_SEED)


def serve(
    rounds: list[tuple[str, Path]], cases: dict[Path, list[Case]], first: Path, folder: Path, **job: Any
) -> tuple[list[dict[str, Any]], str]:
    """Start an engine with ``first``, load again in ``rounds``, and check each round's tokens; what the rounds reported."""
    prompts = [case.prompt for known in cases.values() for case in known]
    length = len(next(iter(cases.values()))[0].answer)
    whole = job_for(first, prompts, length, **job) | {"rounds": [(how, str(path)) for how, path in rounds], "repeat": 2}
    devices = whole["tp"] * whole["dp"]
    done = run_script("tests.serve.reload_script", text=json.dumps(whole), devices=devices, folder=folder)
    assert done.returncode == 0, done.stdout[-6000:]
    found: list[dict[str, Any]] = result_of(done)
    for number, each in enumerate(found):
        served = None if each["error"] else rounds[number - 1][1] if number else first
        start = 0
        for path, known in cases.items():
            if path == served:
                for tokens in each["tokens"]:
                    own = tokens[start : start + len(known)]
                    assert own == [case.answer for case in known], f"round {number}, {path.name}"
            start += len(known)
    return found, done.stdout


def held_alike(found: list[dict[str, Any]]) -> None:
    """No round needs more memory than the first, and every parameter is where it was."""
    for each in found[1:]:
        assert each["held"]["addresses"] == found[0]["held"]["addresses"]
        # A data-parallel rank may be in a dummy step meanwhile; one layer's experts are many times this.
        assert each["held"]["allocated"] <= found[0]["held"]["allocated"] + 4096


def names_of(checkpoint: Path) -> list[str]:
    """The tensors of a checkpoint."""
    (file,) = checkpoint.glob("*.safetensors")
    return list(load_file(file))


def without(checkpoint: Path, names: list[str], folder: Path) -> Path:
    """A copy of ``checkpoint`` that lacks tensors."""
    copy = Path(shutil.copytree(checkpoint, folder / f"{checkpoint.name}-lacking"))
    (file,) = copy.glob("*.safetensors")
    held = load_file(file)
    for name in names:
        del held[name]
    save_file(held, file, metadata={"format": "pt"})
    return copy


@pytest.mark.slow
def test_experts_that_load_balancing_moves_are_the_ones_that_are_reloaded(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = pair
    cases = {path: tiny_models.few_cases(path) for path in pair}
    rounds = [("reload", second), ("push_one_by_one", first), ("reload", second), ("push", first)]
    arguments = {"enforce_eager": True, "additional_config": EPLB}
    found, log = serve(rounds, cases, first, tmp_path, tp=2, dp=1, arguments=arguments)
    held_alike(found)
    assert [each["error"] for each in found] == [None] * 5
    assert len(re.findall(r"Rearranged experts +in", log)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("dp", [1, 2])
def test_graphs_that_were_captured_with_one_checkpoint_serve_the_next(
    dp: int, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = pair
    cases = {path: tiny_models.few_cases(path) for path in pair}
    rounds = [("reload", second), ("push", first), ("reload", second), ("reload", first)]
    arguments = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8]}}
    found, _ = serve(rounds, cases, first, tmp_path, dp=dp, arguments=arguments)
    held_alike(found)
    assert [each["error"] for each in found] == [None] * 5


@needs_int8_experts
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_int8_weights_and_their_scales_are_the_ones_that_are_reloaded(
    dtype: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    made = [
        w8a8_models.make(dense, tmp_path)
        for dense in (checkpoints("mixtral"), tiny_models.make("mixtral", tmp_path, SECOND_SEED))
    ]
    cases = {quantised: w8a8_models.first_token_cases(twin, 8) for quantised, twin in made}
    first, second = cases
    rounds = [("reload", second), ("push", first), ("push_one_by_one", second), ("reload", first)]
    arguments = {"dtype": dtype, "enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [1, 8]}}
    found, _ = serve(rounds, cases, first, tmp_path, dp=1, arguments=arguments)
    held_alike(found)
    assert [each["error"] for each in found] == [None] * 5


@pytest.mark.slow
def test_a_reload_that_lacks_a_tensor_says_which_and_the_next_complete_one_serves(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = pair
    layer = "model.layers.1.mlp.experts"
    one = without(second, [f"{layer}.5.up_proj.weight"], tmp_path / "one")
    whole = without(second, [name for name in names_of(second) if name.startswith(layer)], tmp_path / "whole")
    cases = {path: tiny_models.few_cases(path) for path in pair}
    rounds = [("reload", one), ("reload", second), ("reload", whole), ("reload", first)]
    found, _ = serve(rounds, cases, first, tmp_path, dp=1)
    held_alike(found)
    assert f"the checkpoint lacks {layer}.5.up_proj.weight: " in found[1]["error"]
    assert f"the checkpoint lacks {layer}." in found[3]["error"]
    assert [bool(each["error"]) for each in found] == [False, True, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2], ids=["one device", "load balancing over two"])
def test_a_checkpoint_that_lacks_an_experts_tensor_is_refused(
    tp: int, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.experts.7.down_proj.weight"
    arguments = {"additional_config": EPLB} if tp > 1 else {}
    checkpoint = without(checkpoints(FAMILY), [name], tmp_path)
    output = refused(checkpoint, tmp_path, devices=tp, tp=tp, ep=tp > 1, arguments=arguments)
    assert f"ValueError: the checkpoint lacks {name}: " in output
