# SPDX-License-Identifier: Apache-2.0
"""An engine that fills its NPUs with KV cache and then runs the largest steps that it allows. Run as a subprocess.

Reads the engine's arguments as JSON from standard input and reports, per worker, the bytes that vLLM may use, those of the
KV cache, and the most that were allocated while serving. The worker classes stand here too, because vLLM
imports them by name.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import json
import sys
from typing import Any

import torch
import torch_npu
from vllm import LLM

from tests.support.engine import generate_offline, tokens_of
from tests.support.processes import report
from vllm_ascend_patch.npu.worker import NPUWorker
from vllm_ascend_patch.seams.moe.method import NPUExperts
from vllm_ascend_patch.seams.port import latent_attention


class MeasuredWorker(NPUWorker):
    """The product's worker, asked for what it allocates."""

    def forget_peak(self) -> None:
        torch_npu.npu.reset_peak_memory_stats()

    def memory(self) -> dict[str, int]:
        return {
            "allowed": int(self.requested_memory),
            "kv_cache": int(self.available_kv_cache_memory_bytes),
            "peak": int(torch_npu.npu.max_memory_allocated()),
        }


class WithoutMoEInProfiling(MeasuredWorker):
    """Sizes the KV cache as if experts and their communication took no memory."""

    def determine_available_memory(self) -> int:
        apply = NPUExperts.apply
        NPUExperts.apply = _nothing  # type: ignore[method-assign, assignment]
        try:
            return super().determine_available_memory()
        finally:
            NPUExperts.apply = apply  # type: ignore[method-assign]


class WithoutPrefillInProfiling(MeasuredWorker):
    """Sizes the KV cache with upstream's profile of latent attention alone, which computes none."""

    def determine_available_memory(self) -> int:
        allocate = latent_attention._allocate_like_prefill
        latent_attention._allocate_like_prefill = lambda layer, output: None
        try:
            return super().determine_available_memory()
        finally:
            latent_attention._allocate_like_prefill = allocate


def _nothing(method: Any, layer: Any, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return torch.zeros_like(x)


def main() -> None:
    job = json.load(sys.stdin)
    llm = LLM(**job["engine"])
    llm.collective_rpc("forget_peak")
    generated = 0
    for lengths in job["prompt_lengths"]:  # those of a round are asked together
        prompts = [[3 + i % 500 for i in range(length)] for length in lengths]
        generated += sum(map(len, tokens_of(generate_offline(llm, prompts, max_tokens=2))))
    report({"generated": generated, "workers": llm.collective_rpc("memory")})


if __name__ == "__main__":
    main()
