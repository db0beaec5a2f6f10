# SPDX-License-Identifier: Apache-2.0
"""Sizes that operators do not take, and profilers of other devices, are refused in the user's process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import result_of
from tests.support.tiny_models import CONFIGS, FORMS

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]

MIXTRAL = CONFIGS["mixtral"].to_dict() | {"architectures": ["MixtralForCausalLM"]}
LLAMA4 = FORMS["llama4"].to_dict() | {"architectures": ["Llama4ForCausalLM"]}
LONG = {"max_position_embeddings": 1 << 20, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
TORCH_PROFILER = {"profiler": "torch", "torch_profiler_dir": "/tmp"}
# What differs from a tiny model, the engine's arguments, and how the refusal begins (None: it is served).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "a million tokens": (MIXTRAL | LONG, {"max_model_len": 1 << 20}, "--max-model-len 1048576 needs 8193 KV blocks"),
    "a million tokens on two ranks": (MIXTRAL | LONG, {"max_model_len": 1 << 20, "tensor_parallel_size": 2}, None),
    "blocks": (MIXTRAL | LONG, {"num_gpu_blocks_override": 8192}, "--num-gpu-blocks-override 8192: at most 8191"),
    "requests": (
        MIXTRAL | LONG,
        {"max_num_seqs": 4097, "max_num_batched_tokens": 8192},
        "--max-num-seqs 4097 lets attention meet 4097 requests in a step, at most 4096",
    ),
    "requests of chunked attention": (
        LLAMA4 | {"head_dim": 128},
        {"max_num_seqs": 4096, "max_num_batched_tokens": 8192},
        "--max-num-seqs 4096 lets attention meet 8192 requests in a step (each counts once per chunk of 128 tokens)",
    ),
    "chunks": (
        LLAMA4 | {"attention_chunk_size": 64},
        {},
        "this model's attention stays within chunks of 64 tokens; only chunks of whole KV blocks",
    ),
    "chunks of no layer": (LLAMA4 | {"attention_chunk_size": 64, "no_rope_layers": [0] * 4}, {}, None),
    "query heads": (
        MIXTRAL | {"num_attention_heads": 256, "num_key_value_heads": 128, "head_dim": 256},
        {},
        "attention with head size 256, 256 query heads and 128 KV heads per rank cannot be served",
    ),
    "wide experts": (
        MIXTRAL | {"intermediate_size": 32768},
        {},
        "experts of hidden size 64 and intermediate size 32768",
    ),
    "wide experts on two ranks": (MIXTRAL | {"intermediate_size": 32768}, {"tensor_parallel_size": 2}, None),
    "many experts": (MIXTRAL | {"num_local_experts": 1025}, {}, "1025 experts per rank, at most 1024"),
    "torch's profiler": (MIXTRAL, {"profiler_config": TORCH_PROFILER}, None),
    "a profiler of another device": (
        MIXTRAL,
        {"profiler_config": {"profiler": "cuda"}},
        "the profiler 'cuda' of --profiler-config does not run on Ascend NPUs; supported: torch",
    ),
    "activities of another device": (
        MIXTRAL,
        {"profiler_config": TORCH_PROFILER | {"torch_profiler_activities": ["CPU", "CUDA"]}},
        "torch_profiler_activities CUDA of --profiler-config are not recorded on Ascend NPUs; supported: CPU, PrivateUse1",
    ),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """All cases in one process that makes configurations only."""
    folder, jobs = tmp_path_factory.mktemp("front_door"), []
    for name, (config, arguments, _) in CASES.items():
        model = folder / re.sub("[ ']", "-", name)
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config))
        jobs.append((str(model), arguments))
    done = run_script(
        "tests.serve.front_door_script", text=json.dumps(jobs), devices=2, folder=Path(folder), seconds=200
    )
    return dict(zip(CASES, result_of(done), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_served_is_refused_before_any_process(name: str, refusals: dict[str, str | None]) -> None:
    *_, expected = CASES[name]
    found = refusals[name]
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"NotServable: {expected}"), found
