# SPDX-License-Identifier: Apache-2.0
"""An engine that fills its NPUs with KV cache and then runs the largest steps that it allows. Run as a subprocess.

Reads the engine's arguments as JSON from standard input and writes ``RESULT <json>`` as its last line: per worker, the bytes
that vLLM may use, those of the KV cache, and the most that were allocated while serving. The worker class stands here too,
because vLLM imports it by name.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import json
import sys

import torch_npu
from vllm import LLM, SamplingParams

from vllm_ascend_patch.npu.worker import NPUWorker


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


def main() -> None:
    job = json.load(sys.stdin)
    llm = LLM(**job["engine"])
    llm.collective_rpc("forget_peak")
    prompts = [{"prompt_token_ids": [3 + i % 500 for i in range(length)]} for length in job["prompt_lengths"]]
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False)
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    print("RESULT " + json.dumps({"generated": generated, "workers": llm.collective_rpc("memory")}), flush=True)


if __name__ == "__main__":
    main()
