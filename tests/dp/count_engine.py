# SPDX-License-Identifier: Apache-2.0
"""Script: an asynchronous engine with data parallelism, driven through prefill, decode, mixed and idle steps; reports what
each rank's worker counted after each. Reads ``{"model", "dp", "folder", "arguments"}`` from a file."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.engine import Engine, engine_arguments, settled
from tests.support.processes import report


async def drive(job: dict[str, Any]) -> dict[str, Any]:
    arguments = engine_arguments(
        job["model"],
        **{
            "enable_expert_parallel": True,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "worker_extension_cls": "tests.support.counting_worker.CountingWorker",
            **job.get("arguments", {}),
        },
    )
    files = [Path(job["folder"], f"counts.rank{rank}.json") for rank in range(job["dp"])]
    async with Engine(arguments, job["dp"]) as engine:

        async def generate(length: int, tokens: int) -> list[int]:
            return await engine.generate([3 + (7 * i + length) % 400 for i in range(length)], tokens)

        async def read() -> list[Any]:
            await engine.ask("write_counts", job["folder"])
            return [json.loads(path.read_text()) for path in files]

        async def counts() -> list[Any]:
            """Once the last wave's dummy steps have ended."""
            return await settled(read, pause=0.5)

        result: dict[str, Any] = {"start-up": await counts()}
        await engine.ask("count_forwards")
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


if __name__ == "__main__":
    report(asyncio.run(drive(json.loads(Path(sys.argv[1]).read_text()))))
