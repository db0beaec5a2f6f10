# SPDX-License-Identifier: Apache-2.0
"""A worker's parameters hold what was loaded last, where they were before; what a checkpoint lacks is refused by name.

Parameters alone, of a worker without an engine; that tokens follow them is ``test_reload.py``'s.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support import int4_models, modelslim_models, tiny_models, w8a8_models
from tests.support.installed import HAS_MODELSLIM, needs_int8_experts
from tests.support.processes import result_of

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600), needs_int8_experts]

SECOND_SEED = 12
EXPERTS = {
    "dense": "model.layers.1.mlp.experts",
    "int8": "model.layers.1.block_sparse_moe.experts",
    "modelslim": "model.layers.1.mlp.experts",
    "int4": "model.layers.1.block_sparse_moe.experts",
}
FAMILIES = {"dense": "qwen3_moe", "int8": "mixtral", "modelslim": "qwen3_moe", "int4": "mixtral"}
# What a start lacks, then what a reload lacks.
LACKING = {
    "dense": (
        [
            "model.layers.1.mlp.experts.7.down_proj.weight",
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.mlp.gate.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
        ],
        ["model.layers.1.mlp.experts.5.up_proj.weight"],
    ),
    "int8": (
        [
            "model.layers.1.block_sparse_moe.experts.3.w3.weight_scale",
            "model.layers.1.block_sparse_moe.experts.3.w2.weight",
            "model.layers.1.self_attn.v_proj.weight_scale",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.1.input_layernorm.weight",
        ],
        ["model.layers.1.block_sparse_moe.experts.5.w3.weight_scale", "model.layers.1.self_attn.k_proj.weight_scale"],
    ),
    "modelslim": (
        ["model.layers.1.self_attn.k_proj.quant_bias", "model.layers.0.mlp.experts.2.up_proj.weight_scale"],
        [
            "model.layers.1.mlp.experts.5.up_proj.weight_scale",
            "model.layers.0.self_attn.k_proj.deq_scale",
            "model.layers.1.self_attn.o_proj.quant_bias",
            "model.layers.0.self_attn.v_proj.input_offset",
        ],
    ),
    "int4": (
        [
            "model.layers.1.block_sparse_moe.experts.3.w3.weight_packed",
            "model.layers.1.block_sparse_moe.experts.2.w2.weight_scale",
            "model.layers.1.self_attn.v_proj.weight_packed",
            "model.layers.0.self_attn.o_proj.weight_scale",
        ],
        ["model.layers.1.block_sparse_moe.experts.5.w3.weight_scale", "model.layers.1.self_attn.k_proj.weight_packed"],
    ),
}
if not HAS_MODELSLIM:
    del LACKING["modelslim"], LACKING["int4"]  # both are served from the same release on


def without(checkpoint: Path, lacking: Callable[[str], bool], folder: Path) -> Path:
    """A copy of ``checkpoint`` that lacks tensors."""
    copy = Path(shutil.copytree(checkpoint, folder))
    (file,) = copy.glob("*.safetensors")
    save_file({n: t for n, t in load_file(file).items() if not lacking(n)}, file, metadata={"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def found(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script reports, of both kinds of model in one process."""
    folder = tmp_path_factory.mktemp("weights")
    job: dict[str, dict[str, Any]] = {}
    for kind in LACKING:
        family = FAMILIES[kind]
        pair = checkpoints(family), tiny_models.make(family, folder, SECOND_SEED)
        if kind == "int8":
            pair = w8a8_models.make(pair[0], folder)[0], w8a8_models.make(pair[1], folder)[0]
        elif kind == "modelslim":
            pair = modelslim_models.make(pair[0], folder), modelslim_models.make(pair[1], folder)
        elif kind == "int4":
            pair = int4_models.make(pair[0], folder)[0], int4_models.make(pair[1], folder)[0]
        first, second = pair
        at_start, on_reload = LACKING[kind]
        copies = [without(first, name.__eq__, folder / f"{kind}-start-{name}") for name in at_start]
        lacking = [without(second, name.__eq__, folder / f"{kind}-reload-{name}") for name in on_reload]
        lacking.append(without(second, lambda name, k=kind: name.startswith(EXPERTS[k]), folder / f"{kind}-layer"))  # type: ignore[misc]
        rounds = [("reload", second), ("reload", first), ("push", second), ("push_one_by_one", first)]
        rounds += [("reload", path) for path in lacking] + [("reload", first), ("reload", second)]
        job[kind] = {
            "first": str(first),
            "second": str(second),
            "start": [str(path) for path in copies],
            "rounds": [(how, str(path)) for how, path in rounds],
            "dtype": "bfloat16" if kind == "int8" else "float16",
        }
    done = run_script("tests.serve.weights_script", text=json.dumps(job), devices=1, folder=folder)
    assert done.returncode == 0, done.stdout[-6000:]
    result: dict[str, Any] = result_of(done)
    return result


@pytest.mark.parametrize("kind", LACKING)
def test_a_start_that_lacks_a_tensor_is_refused_by_its_name(kind: str, found: dict[str, Any]) -> None:
    for name, error in zip(LACKING[kind][0], found[kind]["refused"], strict=True):
        assert error is not None, name
        if kind == "modelslim":  # seen before anything is loaded, beside the description
            assert f"quant_model_description.json lists {name}, which no file of the checkpoint has. " in error
        else:
            # Quantised weights and their scales are looked for before anything is loaded, too.
            assert error.startswith(
                tuple(f"{error_type}: the checkpoint lacks {name}: " for error_type in ("ValueError", "NotServable"))
            )


@pytest.mark.parametrize("kind", LACKING)
def test_parameters_hold_what_was_loaded_last_and_stay_where_they_are(kind: str, found: dict[str, Any]) -> None:
    assert found[kind]["differ"] > 8, "two checkpoints that are too alike show nothing"
    for each in found[kind]["rounds"]:
        assert not each["moved"]
        assert each["more"] <= 0, "bytes that are held besides"
        assert each["error"] or not each["wrong"]


@pytest.mark.parametrize("kind", LACKING)
def test_int8_weights_of_the_first_product_are_in_fractal_nz_through_all_of_it(
    kind: str, found: dict[str, Any]
) -> None:
    layers = range(2) if kind in ("int8", "modelslim") else ()
    named = {f"{EXPERTS[kind].replace('.1.', f'.{layer}.')}.w13_weight" for layer in layers}
    assert {name.replace(".routed_experts", "") for name in found[kind]["nz"]} == named


@pytest.mark.parametrize("kind", LACKING)
def test_a_reload_that_lacks_a_tensor_fails_by_its_name_and_the_next_complete_one_mends_it(
    kind: str, found: dict[str, Any]
) -> None:
    errors = [each["error"] for each in found[kind]["rounds"]]
    lacking = LACKING[kind][1]
    assert errors[:4] == [None] * 4
    for name, error in zip(lacking, errors[4:], strict=False):
        assert error.startswith(f"RuntimeError: the weights were not reloaded: the checkpoint lacks {name}: ")
    whole_layer = errors[4 + len(lacking)]
    assert f"the checkpoint lacks {EXPERTS[kind]}.0." in whole_layer
    assert errors[-2:] == [None, None]
