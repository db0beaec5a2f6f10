# SPDX-License-Identifier: Apache-2.0
"""The KV cache leaves room for the largest step, because memory is profiled with the communication that serving uses.

Real engines on virtual NPUs of 512 MiB, which refuse what does not fit as a device does. The model's experts are wide
enough for their buffers to matter: those of a method hold each expert's rows, MC2's as many as there could be.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import latent_models
from tests.support.installed import needs_latent_attention
from tests.support.processes import result_of

from .scripts import run_script

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]

SCRIPT = "tests.serve.memory_script"
MIB = 1 << 20
CAPACITY, LARGEST = 1024, 1040  # tokens of a step: MC2's on two ranks of A3, and the scheduler's


def serve(checkpoint: Path, folder: Path, worker: str) -> subprocess.CompletedProcess[str]:
    """Fill two NPUs with KV cache, then run steps of ``LARGEST`` and of ``CAPACITY`` tokens."""
    engine = {
        "model": str(checkpoint),
        "skip_tokenizer_init": True,
        "dtype": "float16",
        "tensor_parallel_size": 2,
        "enable_expert_parallel": True,
        "max_model_len": 4096,
        "max_num_seqs": CAPACITY,
        "max_num_batched_tokens": LARGEST,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.94,  # the rest, 31 MiB, holds the allocator's segments of 20 MiB
        "worker_cls": f"{SCRIPT}.{worker}",
    }
    job = {"engine": engine, "prompt_lengths": [[LARGEST + CAPACITY]]}
    return run_script(SCRIPT, text=json.dumps(job), devices=2, folder=folder, soc="A3", memory="512MiB")


def test_the_largest_steps_fit_next_to_the_kv_cache(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    done = serve(checkpoints("mixtral_wide_experts"), tmp_path, "MeasuredWorker")
    assert done.returncode == 0, done.stdout[-4000:]
    before_sizing = done.stdout.partition("Available KV cache memory")[0]
    assert set(re.findall(r"MoE communication: (\w+) for (\d+) tokens", before_sizing)) == {
        ("allgather", str(LARGEST)),
        ("mc2", str(CAPACITY)),
    }
    result = result_of(done)
    assert result["generated"] == 2
    for worker in result["workers"]:
        assert worker["kv_cache"] > 200 * MIB
        assert worker["peak"] <= worker["allowed"]


@pytest.mark.slow
def test_profiling_without_moe_communication_would_leave_too_little(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    done = serve(checkpoints("mixtral_wide_experts"), tmp_path, "WithoutMoEInProfiling")
    assert done.returncode != 0
    assert "out of memory" in done.stdout


def serve_latent(folder: Path, worker: str) -> subprocess.CompletedProcess[str]:
    """Fill an NPU with latent KV cache; then a step of 16 requests, each of 64 tokens after 896 that are in the cache."""
    engine = {
        "model": str(latent_models.make("deepseek_v3_16_heads", folder)),
        "skip_tokenizer_init": True,
        "dtype": "float16",
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        "enable_prefix_caching": True,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.94,
        "worker_cls": f"{SCRIPT}.{worker}",
    }
    job = {"engine": engine, "prompt_lengths": [[960], [960] * 16]}
    return run_script(SCRIPT, text=json.dumps(job), devices=1, folder=folder, memory="512MiB")


@needs_latent_attention
@pytest.mark.slow
def test_the_largest_chunk_of_context_fits_next_to_the_latent_kv_cache(tmp_path: Path) -> None:
    """The 14336 tokens of context are more than the workspace of 8192, so a chunk is as large as one can get."""
    done = serve_latent(tmp_path, "MeasuredWorker")
    assert done.returncode == 0, done.stdout[-4000:]
    result = result_of(done)
    assert result["generated"] == 2 + 32
    (worker,) = result["workers"]
    projected = 8192 * 16 * (256 + 320) * 2  # tokens, heads, elements of what a chunk's keys and values take, bytes
    assert worker["kv_cache"] > 64 * MIB
    assert worker["kv_cache"] + projected < worker["peak"] <= worker["allowed"]


@needs_latent_attention
@pytest.mark.slow
def test_upstreams_profile_of_latent_attention_would_leave_too_little(tmp_path: Path) -> None:
    done = serve_latent(tmp_path, "WithoutPrefillInProfiling")
    assert done.returncode != 0
    assert "out of memory" in done.stdout
