# SPDX-License-Identifier: Apache-2.0
"""A user's own script: ``import vllm_ascend_patch``, then vLLM's offline or asynchronous engine. Run as a subprocess.

Reads a job as JSON from standard input and writes ``RESULT <json>`` as its last line. With data parallelism it goes
through the situations in which ranks differ: one request alone, all at once, late arrivals, an aborted one, many short ones.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  (what the test is about: one import, before vLLM)

import asyncio
import json
import random
import sys
import time
from typing import Any

from vllm import LLM, SamplingParams


def sampling(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)


def engine_arguments(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": job["model"],
        "skip_tokenizer_init": True,
        "dtype": job.get("dtype", "float16"),
        "tensor_parallel_size": job["tp"],
        "enable_expert_parallel": job["ep"],
        "max_model_len": 512,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 128,  # longer prompts are prefilled in chunks
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.3,
        "seed": 0,
        "enforce_eager": True,  # captures would cost each test their time; test_graphs.py asks for them
        **job.get("arguments", {}),
    }


def run_offline(job: dict[str, Any]) -> dict[str, Any]:
    llm = LLM(**engine_arguments(job))
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    first = llm.generate(prompts[:1], sampling(job["max_tokens"]), use_tqdm=False)
    rest = llm.generate(prompts[1:], sampling(job["max_tokens"]), use_tqdm=False)
    again = llm.generate(prompts, sampling(job["max_tokens"]), use_tqdm=False)  # answered from cached prefixes
    return {
        "tokens": [list(o.outputs[0].token_ids) for o in first + rest],
        "again": [list(o.outputs[0].token_ids) for o in again],
        "cached": [o.num_cached_tokens for o in again],
    }


class ExpertMap:
    """Asked of workers: which logical expert each physical one of a layer holds."""

    model_runner: Any

    def physical_to_logical(self) -> list[list[int]]:
        (state,) = self.model_runner.eplb_state.model_states.values()
        return state.physical_to_logical_map.tolist()


async def run_async(job: dict[str, Any]) -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(**engine_arguments(job), data_parallel_size=job["dp"])
    engine = AsyncLLM.from_engine_args(arguments)
    numbers = iter(range(10**6))

    async def generate(prompt: list[int], max_tokens: int) -> list[int]:
        tokens: list[int] = []
        request = f"request-{next(numbers)}"
        async for output in engine.generate({"prompt_token_ids": prompt}, sampling(max_tokens), request):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    async def generate_some_then_abort(prompt: list[int]) -> int:
        async for output in engine.generate({"prompt_token_ids": prompt}, sampling(200), "aborted"):
            if len(output.outputs[0].token_ids) >= 5:
                await engine.abort("aborted")
                return len(output.outputs[0].token_ids)
        return -1

    prompts, length = job["prompts"], job["max_tokens"]
    try:
        alone = [await generate(prompt, length) for prompt in prompts[:2]]
        together = await asyncio.gather(*(generate(prompt, length) for prompt in prompts))
        aborted = asyncio.create_task(generate_some_then_abort(prompts[3]))
        late = []
        for prompt in prompts:  # each arrives while those before it decode
            late.append(asyncio.create_task(generate(prompt, length)))
            await asyncio.sleep(0.05)
        late_tokens = await asyncio.gather(*late)
        aborted_after = await asyncio.wait_for(aborted, 60)
        chance = random.Random(3)
        many = [(chance.choice(prompts)[: chance.randint(1, 60)], chance.randint(1, 24)) for _ in range(job["many"])]
        counts = [len(t) for t in await asyncio.gather(*(generate(p, n) for p, n in many))]
        asked = await engine.collective_rpc(job["ask"]) if "ask" in job else None
        return {
            "asked": asked,
            "alone": alone,
            "together": together,
            "late": late_tokens,
            "aborted_after": aborted_after,
            "many_complete": counts == [n for _, n in many],
        }
    finally:
        engine.shutdown()


def draft_counts() -> dict[str, int]:
    """Draft tokens proposed and accepted, as vLLM's own metrics have them; empty without speculation."""
    from vllm.v1.metrics.reader import get_metrics_snapshot

    counts: dict[str, int] = {}
    for metric in get_metrics_snapshot():
        for name in ("draft", "accepted"):
            if metric.name == f"vllm:spec_decode_num_{name}_tokens":
                counts[name] = counts.get(name, 0) + int(metric.value)
    return counts


def main() -> None:
    job = json.load(sys.stdin)
    start = time.monotonic()
    result = run_offline(job) if job["dp"] == 1 else asyncio.run(run_async(job))
    result["drafts"] = draft_counts()
    result["seconds"] = time.monotonic() - start
    result["status"] = [(row.patch.id, str(row.state)) for row in vllm_ascend_patch.status()]
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
