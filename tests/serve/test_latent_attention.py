# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention (MLA): greedy tokens equal those of Hugging Face transformers on the same weights.

A step takes 128 tokens, so the three longest prompts (150, 265 and 300 tokens) are prefilled in pieces, over context that is
gathered from the cache; two share a prefix of two KV blocks. What is served beside it (graphs, drafts, int8, load balancing,
other weights) is asked of the DeepSeek-V3 shape; every layout of every family.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import latent_models, tiny_models, w8a8_models
from tests.support.clear_tokens import clear_tokens
from tests.support.installed import HAS_GRAPHS_OF_WHOLE_STEPS, needs_latent_attention, needs_runner_v2
from tests.support.tiny_models import Case

from .scripts import ALSO_ON_V2, RUNNERS, chosen, runs
from .test_eplb import AT_START, EPLB
from .test_graphs import traced_workers
from .test_methods import METHODS
from .test_reload import SECOND_SEED, held_alike
from .test_reload import serve as reload

pytestmark = [needs_latent_attention, pytest.mark.serve, pytest.mark.timeout(900)]

WORKER = "tests.serve.latent_worker.LatentWorker"
BYTES_PER_TOKEN = 2 * (512 + 64) * 2  # layers, elements, bytes
GRAPHS = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [2, 8, 16]}}
EAGER: dict[str, Any] = {}
# (tensor parallel, data parallel, arguments)
LAYOUTS = {
    "one device": (1, 1, EAGER),
    "tp 2": (2, 1, GRAPHS),
    "dp 2 with ep": (1, 2, GRAPHS),
    "tp 2 x dp 2 with ep": (2, 2, GRAPHS),
}
COMBINATIONS = [
    pytest.param(family, layout, marks=[] if (family, layout) == ("deepseek_v3", "tp 2") else pytest.mark.slow)
    for family in latent_models.CONFIGS
    for layout in LAYOUTS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latent")


def job_of(checkpoint: Path, cases: list[Case], tp: int, dp: int, **arguments: Any) -> dict[str, Any]:
    if tp == 1:
        arguments["distributed_executor_backend"] = "uni"  # one process less for each rank
    return {
        "model": str(checkpoint),
        "tp": tp,
        "dp": dp,
        "ep": dp > 1,
        "prompts": [case.prompt for case in cases],
        "max_tokens": len(cases[0].answer),
        "many": 20,
        "arguments": {"worker_extension_cls": WORKER, **arguments},
        "watch": "watch",
        "ask": "seen",
    }


def serve(
    checkpoint: Path,
    tp: int,
    dp: int,
    run_engine: Callable[..., Any],
    arguments: dict[str, Any] | None = None,
    **environment: str,
) -> dict[str, Any]:
    """Run an engine on the checkpoint's cases, demand transformers' tokens, return what the engine reported."""
    cases = tiny_models.cases(checkpoint)
    result = run_engine(job_of(checkpoint, cases, tp, dp, **(arguments or {})), devices=tp * dp, **environment)
    expected = [case.answer for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        assert result[name] == expected, name
    if dp == 1:
        assert result["cached"][-1] >= 256, "the shared prefix of two KV blocks was not found in the cache"
    else:
        assert result["alone"] == expected[:2], "of one prompt, the other ranks being idle"
        assert result["many_complete"]
    return result


@pytest.mark.parametrize(("family", "layout"), COMBINATIONS)
@pytest.mark.parametrize("runner", ALSO_ON_V2)
def test_greedy_tokens_equal_transformers(
    runner: str, family: str, layout: str, folder: Path, run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    tp, dp, arguments = LAYOUTS[layout]
    traces = {"VLLM_ASCEND_PATCH_TRACE": str(tmp_path / "{rank}-{pid}.json")} if arguments is GRAPHS else {}
    result = serve(latent_models.make(family, folder), tp, dp, run_engine, arguments, **traces, **RUNNERS[runner])
    assert runs(runner, result["log"])
    seen = result["asked"][0]
    assert seen["bytes_per_token"] == BYTES_PER_TOKEN
    assert max(seen["chunks"]) >= 1, "no prompt was prefilled over context"
    divides = family != "glm4_moe_lite"  # vLLM's model of this family has every tensor parallel rank route all tokens
    assert seen["sequence_parallel"] == (tp == dp == 2 and divides)
    assert seen["async_scheduling"], "vLLM's own default"
    if arguments is GRAPHS:
        workers = traced_workers(tmp_path)
        assert len(workers) == tp * dp
        replayed = "FULL" if HAS_GRAPHS_OF_WHOLE_STEPS else "PIECEWISE"
        assert all(worker.modes[replayed] > worker.modes["NONE"] > 0 for worker in workers)


@pytest.mark.slow
def test_captured_graphs_on_one_device(folder: Path, run_engine: Callable[..., Any]) -> None:
    """Padded rows of a graph are neither written to the cache nor left to the MoE layers as they were in memory."""
    serve(latent_models.make("deepseek_v3", folder), 1, 1, run_engine, GRAPHS)


@pytest.mark.slow
def test_context_of_several_chunks(folder: Path, run_engine: Callable[..., Any]) -> None:
    """More context in one step than the workspace holds: ten requests of 640 cached tokens, and room for 5632.

    The chunks' border falls into a request, so that its context comes in two parts. The engine shares the process of its
    user, so that all requests are there before the first step.
    """
    checkpoint = latent_models.make("deepseek_v3", folder)
    cases = latent_models.cases_after_a_prefix(checkpoint, prefix=640, tails=[9, 3, 5, 7, 2, 4, 6, 8, 1, 10])
    arguments = {"max_model_len": 704, "max_num_seqs": 10}
    job = job_of(checkpoint, cases, 1, 1, **arguments)
    result = run_engine(job, devices=1, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    expected = [case.answer for case in cases]
    assert result["tokens"] == expected
    assert result["again"] == expected
    assert min(result["cached"]) >= 640
    assert max(result["asked"][0]["chunks"]) == 2


@pytest.mark.slow
def test_absorbed_and_plain_attention_agree(folder: Path, run_engine: Callable[..., Any]) -> None:
    """Upstream's own form, in which each head has keys of 192 and values padded to that, gives the same tokens."""
    checkpoint = latent_models.make("deepseek_v3", folder)
    absorbed = serve(checkpoint, 1, 1, run_engine)
    plain = serve(checkpoint, 1, 1, run_engine, VLLM_MLA_DISABLE="1")
    assert plain["tokens"] == absorbed["tokens"]
    assert absorbed["asked"][0]["bytes_per_token"] == BYTES_PER_TOKEN
    assert plain["asked"][0]["bytes_per_token"] == 2 * 4 * (192 + 192) * 2
    assert not plain["asked"][0]["chunks"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tp", "dp", "graphs", "runner"),
    [
        pytest.param(1, 1, GRAPHS, "V1", id="one device, in graphs"),
        pytest.param(1, 2, GRAPHS, "V1", id="dp 2 with ep, in graphs"),
        pytest.param(1, 1, EAGER, "V1", id="one device, eagerly"),
        pytest.param(1, 1, EAGER, "V2", id="one device, eagerly, V2", marks=needs_runner_v2),
    ],
)
def test_drafts_of_a_prediction_layer(
    tp: int, dp: int, graphs: dict[str, Any], runner: str, folder: Path, run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    """Several query tokens per request in decoding, and a drafter whose attention is latent, too."""
    cases = tiny_models.cases(latent_models.make("deepseek_v3", folder))
    drafts = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}, "disable_log_stats": False}
    job = job_of(latent_models.make_with_drafter(folder), cases, tp, dp, **drafts, **graphs)
    traces = {"VLLM_ASCEND_PATCH_TRACE": str(tmp_path / "{rank}-{pid}.json")} if graphs is GRAPHS else {}
    result = run_engine(job, devices=tp * dp, **traces, **RUNNERS[runner])
    expected = [case.answer for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        assert result[name] == expected, name
    assert 0 < result["drafts"]["accepted"] < result["drafts"]["draft"]
    if graphs is GRAPHS and HAS_GRAPHS_OF_WHOLE_STEPS:
        workers = traced_workers(tmp_path)
        assert len(workers) == tp * dp
        assert all(worker.modes["FULL"] > 0 for worker in workers), [worker.modes for worker in workers]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_way_to_the_experts(method: str, folder: Path, run_engine: Callable[..., Any]) -> None:
    """With tensor parallel ranks that divide a step's tokens among them, eagerly: a step of one token is one of one row."""
    checkpoint = latent_models.make("deepseek_v3", folder)
    result = serve(checkpoint, 2, 2, run_engine, VLLM_ASCEND_PATCH_MOE_COMM=method)
    assert chosen(result["log"]) == {method}
    assert result["asked"][0]["sequence_parallel"]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ALSO_ON_V2)
@pytest.mark.parametrize("keep", [("kv_b_proj",), ()], ids=["kv_b_proj in float16", "all linear layers in int8"])
@pytest.mark.parametrize(("dp", "arguments"), [(1, EAGER), (2, GRAPHS)], ids=["one device", "dp 2 with ep"])
def test_int8_experts_and_linear_layers(
    dp: int,
    arguments: dict[str, Any],
    keep: tuple[str, ...],
    runner: str,
    folder: Path,
    tmp_path: Path,
    run_engine: Callable[..., Any],
) -> None:
    """Whole answers keep every clear choice of the dequantised model."""
    dense = latent_models.make("deepseek_v3", folder)
    quantised, twin = w8a8_models.make(dense, tmp_path, keep)
    cases = tiny_models.cases(dense)  # for the prompts
    result = run_engine(job_of(quantised, cases, 1, dp, **arguments), devices=dp, **RUNNERS[runner])
    prompts = [case.prompt for case in cases]
    for name in ("tokens", "again") if dp == 1 else ("together", "late"):
        clear = clear_tokens(twin, prompts, result[name])
        assert [len(answer) for answer in result[name]] == [tiny_models.NEW_TOKENS] * len(cases)
        kept = [
            [token if sure is not None else None for token, sure in zip(*each, strict=True)]
            for each in zip(result[name], clear, strict=True)
        ]
        assert kept == clear, name
        # 123 of the 184 tokens that are decoded are clear, 9 to 20 of an answer.
        assert sum(sure is not None for answer in clear for sure in answer[1:]) >= 100, name


@pytest.mark.slow
def test_experts_that_load_balancing_moves(folder: Path, run_engine: Callable[..., Any]) -> None:
    checkpoint = latent_models.make("deepseek_v3", folder)
    cases = tiny_models.cases(checkpoint)
    arguments = {"additional_config": EPLB, "worker_extension_cls": "tests.serve.engine_script.ExpertMap"}
    job = job_of(checkpoint, cases, 1, 2, **arguments) | {"ask": "physical_to_logical"}
    del job["watch"]
    result = run_engine(job, devices=2)
    answers = [case.answer for case in cases]
    assert result["together"] == answers
    assert result["late"] == answers
    assert len(re.findall(r"Rearranged experts +in", result["log"])) >= 3
    for layer in result["asked"][0]:
        assert set(layer) == set(range(8)), "every expert is somewhere"
        assert layer != AT_START, "experts moved to where the load is"


@pytest.mark.slow
def test_weights_that_are_loaded_again(folder: Path, tmp_path: Path) -> None:
    """The absorbed projections follow, whether vLLM reloads or tensors are pushed into the running model."""
    first, second = (latent_models.make("deepseek_v3", folder, seed) for seed in (11, SECOND_SEED))
    cases = {path: tiny_models.few_cases(path) for path in (first, second)}
    rounds = [("reload", second), ("push", first), ("push_one_by_one", second), ("reload", first)]
    arguments = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8]}}
    found, _ = reload(rounds, cases, first, tmp_path, tp=2, dp=1, arguments=arguments)
    held_alike(found)
    assert [each["error"] for each in found] == [None] * 5
