# SPDX-License-Identifier: Apache-2.0
"""ModelSlim checkpoints are recognised by their file and answer as transformers does with the checkpoint's integers and
with activations quantised as the format says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import draft_models, latent_models, modelslim_models
from tests.support.installed import needs_modelslim, needs_runner_v2
from tests.support.modelslim_models import Export
from tests.support.tiny_models import Case

from .scripts import ALSO_ON_V2, RUNNERS, chosen, job_for, runs

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900), needs_modelslim]

TOKENS = 4
EPLB = {"eplb_config": {"num_redundant_experts": 4, "window_size": 4, "step_interval": 8}}
METHODS = ("mc2", "alltoall", "allgather")
LENGTHS = (1, 5, 19, 33, 64, 150)
EXPORTS = {
    # static attention with and without offset, a few values beyond the range; dynamic experts
    "usual": Export(clip=0.9),
    "older name": Export(clip=0.9, description="quant_model_description_w8a8.json"),
    "bfloat16": Export(dtype=torch.bfloat16),
    "mixed": Export(attention="W8A8_MIX", experts="W8A8_MIX", float_layers=(0,)),
    "dynamic": Export(attention="W8A8_DYNAMIC"),
    "int4 experts": Export(experts="W4A8_DYNAMIC", clip=0.9),
    "static beside float experts": Export(experts="FLOAT", clip=0.5),
}


FROM_ELSEWHERE: dict[str, Callable[[Path], Path]] = {
    "deepseek_v3": lambda folder: latent_models.make("deepseek_v3", folder),
    "glm4_moe": draft_models.make,  # with a prediction layer, which is quantised, too
}


@pytest.fixture
def exported(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Path, list[Case]]]:
    """A checkpoint of an export, and prompts with the oracle's answers."""

    def make(export: str, family: str = "qwen3_moe") -> tuple[Path, list[Case]]:
        maker = FROM_ELSEWHERE.get(family)
        dense = maker(tmp_path) if maker is not None else checkpoints(family)
        quantised = modelslim_models.make(dense, tmp_path, EXPORTS[export])
        oracle = modelslim_models.oracle(dense, quantised)
        return quantised, modelslim_models.clear_cases(oracle, LENGTHS, TOKENS)

    return make


def answers(cases: list[Case]) -> list[list[int]]:
    return [case.answer for case in cases]


@pytest.mark.parametrize(
    ("export", "family", "changes"),
    [
        ("usual", "qwen3_moe", {}),
        pytest.param("int4 experts", "qwen3_moe_int4", {}, marks=pytest.mark.slow),
        pytest.param("older name", "qwen3_moe", {"quantization": "ascend"}, marks=pytest.mark.slow),
        pytest.param("bfloat16", "qwen3_moe", {"dtype": "float16"}, marks=pytest.mark.slow),
        pytest.param("mixed", "qwen3_moe", {}, marks=pytest.mark.slow),
        pytest.param(
            "dynamic", "qwen2_moe", {}, marks=pytest.mark.slow
        ),  # biases of query, key and value; shared experts
        pytest.param("usual", "qwen2_moe", {}, marks=pytest.mark.slow),
        pytest.param("usual", "deepseek_v3", {}, marks=pytest.mark.slow),  # latent attention, kv_b_proj float
        pytest.param("usual", "glm4_moe", {}, marks=pytest.mark.slow),
        pytest.param("static beside float experts", "qwen3_moe", {}, marks=pytest.mark.slow),
        pytest.param("usual", "qwen3_moe", {"enforce_eager": False}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_tokens_equal_transformers_with_the_checkpoints_integers(
    runner: str,
    export: str,
    family: str,
    changes: dict[str, Any],
    exported: Callable[..., tuple[Path, list[Case]]],
    run_engine: Callable[..., Any],
) -> None:
    checkpoint, cases = exported(export, family)
    job = job_for(checkpoint, [case.prompt for case in cases], TOKENS, dp=1, arguments=changes or None)
    result = run_engine(job | {"ep": False}, devices=1, **RUNNERS[runner])
    assert runs(runner, result["log"])
    assert result["tokens"] == answers(cases)
    assert result["again"] == answers(cases)
    assert ("is a ModelSlim checkpoint" in result["log"]) == ("quantization" not in changes)


@pytest.mark.slow
def test_a_quantised_prediction_layer_drafts_what_is_accepted(
    exported: Callable[..., tuple[Path, list[Case]]], run_engine: Callable[..., Any]
) -> None:
    checkpoint, cases = exported("dynamic", "glm4_moe")
    speculation = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}, "disable_log_stats": False}
    job = job_for(checkpoint, [case.prompt for case in cases], TOKENS, dp=1, arguments=speculation)
    result = run_engine(job | {"ep": False}, devices=1)
    assert result["tokens"] == answers(cases)
    assert result["drafts"]["accepted"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("export", "family"), [("usual", "qwen2_moe"), ("int4 experts", "qwen3_moe_int4")])
def test_ranks_with_slices_of_the_layers_answer_alike(
    graphs: bool,
    export: str,
    family: str,
    exported: Callable[..., tuple[Path, list[Case]]],
    run_engine: Callable[..., Any],
) -> None:
    checkpoint, cases = exported(export, family)
    job = job_for(
        checkpoint, [case.prompt for case in cases], TOKENS, tp=2, dp=1, arguments={"enforce_eager": not graphs}
    )
    result = run_engine(job | {"ep": False}, devices=2)
    assert result["tokens"] == answers(cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "export", "family", "balanced"),
    [
        ("V1", "usual", "qwen3_moe", False),
        ("V1", "int4 experts", "qwen3_moe_int4", False),
        ("V1", "usual", "qwen3_moe", True),
        pytest.param("V2", "usual", "qwen3_moe", False, marks=needs_runner_v2),
        pytest.param("V2", "int4 experts", "qwen3_moe_int4", False, marks=needs_runner_v2),
    ],
)
def test_ranks_with_experts_of_their_own_answer_alike_with_every_method(
    runner: str,
    export: str,
    family: str,
    balanced: bool,
    exported: Callable[..., tuple[Path, list[Case]]],
    run_engine: Callable[..., Any],
) -> None:
    """One request alone leaves the other rank without tokens, and experts without any."""
    checkpoint, cases = exported(export, family)
    job = job_for(checkpoint, [case.prompt for case in cases], TOKENS) | {"force": METHODS}
    job["arguments"]["worker_extension_cls"] = "tests.serve.forced_worker.ForcedWorker"
    if balanced:
        job["arguments"] |= {"enforce_eager": True, "additional_config": EPLB}
        job["ask"] = "physical_to_logical"
    result = run_engine(job, devices=2, **RUNNERS[runner])
    assert result["alone"] == answers(cases)[:2]
    assert result["together"] == answers(cases)
    assert result["late"] == answers(cases)
    assert result["forced"] == {method: answers(cases) for method in METHODS}
    assert chosen(result["log"]) == set(METHODS)
    if balanced:
        assert result["log"].count("Rearranged experts") >= 3
        for layer in result["asked"][0]:
            assert set(layer) == set(range(8)), "every expert is somewhere"
            assert layer != [*range(8), *range(4)], "experts moved to where the load is, with their scales"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mc2", "allgather"])
@pytest.mark.parametrize(("export", "family"), [("usual", "qwen3_moe"), ("int4 experts", "qwen3_moe_int4")])
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_ranks_with_experts_of_their_own_answer_alike_from_graphs(
    runner: str,
    export: str,
    family: str,
    method: str,
    exported: Callable[..., tuple[Path, list[Case]]],
    run_engine: Callable[..., Any],
) -> None:
    checkpoint, cases = exported(export, family)
    job = job_for(checkpoint, [case.prompt for case in cases], TOKENS, arguments={"enforce_eager": False})
    result = run_engine(job, devices=2, VLLM_ASCEND_PATCH_MOE_COMM=method, **RUNNERS[runner])
    assert result["alone"] == answers(cases)[:2]
    assert result["together"] == answers(cases)
    assert result["late"] == answers(cases)
    assert chosen(result["log"]) == {method}
