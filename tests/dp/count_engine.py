# SPDX-License-Identifier: Apache-2.0
"""Script: an asynchronous engine with data parallelism, driven through prefill, decode, mixed and idle steps; prints what
each rank's worker counted after each. Reads `{"model", "dp", "folder", "arguments"}` from a file, ends with
`RESULT <json>`."""

from __future__ import annotations

import os

if os.environ.get("COUNT_WITH_PATCH", "1") == "1":
    import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM


async def drive(job: dict[str, Any]) -> dict[str, Any]:
    arguments = AsyncEngineArgs(
        model=job["model"],
        skip_tokenizer_init=True,
        dtype="float16",
        data_parallel_size=job["dp"],
        enable_expert_parallel=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        gpu_memory_utilization=0.3,
        seed=0,
        worker_extension_cls="tests.dp.worker_extension.CountingWorker",
        **job.get("arguments", {}),
    )
    engine = AsyncLLM.from_engine_args(arguments)
    names = iter(range(10**6))
    files = [Path(job["folder"], f"counts.rank{rank}.json") for rank in range(job["dp"])]

    async def generate(length: int, tokens: int) -> list[int]:
        parameters = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        prompt = {"prompt_token_ids": [3 + (7 * i + length) % 400 for i in range(length)]}
        last: list[int] = []
        async for output in engine.generate(prompt, parameters, str(next(names))):
            last = list(output.outputs[0].token_ids)
        return last

    async def counts() -> list[Any]:
        found: list[Any] = []
        for _ in range(100):  # until the last wave's dummy steps have ended
            await asyncio.sleep(0.5)
            await engine.collective_rpc("write_counts", args=(job["folder"],))
            before, found = found, [json.loads(path.read_text()) for path in files]
            if found == before:
                return found
        raise TimeoutError(f"the ranks still run steps, 50 s after the last request: {found}")

    result: dict[str, Any] = {"start-up": await counts()}
    try:
        await engine.collective_rpc("count_forwards")
        tokens = [await generate(150, 1)]  # prefill in chunks on one rank, dummy steps on the others
        result["prefill, one request"] = await counts()
        tokens.append(await generate(2, 30))
        result["decode, one request"] = await counts()
        tokens += await asyncio.gather(*(generate(3 + 17 * i, 5 + 3 * i) for i in range(6)))
        result["mixed, all ranks"] = await counts()
        await asyncio.sleep(job.get("idle", 2.0))
        result["idle"] = await counts()
        tokens.append(await generate(4, 5))
        result["decode after idling"] = await counts()
        result["tokens"] = tokens
        return result
    finally:
        engine.shutdown()


if __name__ == "__main__":
    print("RESULT " + json.dumps(asyncio.run(drive(json.loads(Path(sys.argv[1]).read_text())))), flush=True)
