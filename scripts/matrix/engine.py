# SPDX-License-Identifier: Apache-2.0
"""One engine of the matrix, run as a subprocess: stock vLLM after one import, driven through the situations that tell.

Reads a job as JSON from standard input and writes ``RESULT <json>`` as its last line; the workers write files of their own
(``worker.py``). With data parallelism one request comes first, so that ranks without work have to keep step.
Imports nothing at its head that takes time: every process that the engine spawns imports this module again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

_RPC_SECONDS = 180  # some releases wait for ever for an engine that ended
_QUIET_SECONDS = 1.0  # longer than a step: ranks that still run dummy steps send vectors meanwhile


def run_offline(job: dict[str, Any]) -> dict[str, Any]:
    from tests.serve.engine_script import LLM, engine_arguments, sampling

    llm = LLM(**engine_arguments(job))
    llm.collective_rpc("matrix_begin")
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]

    def generate(some: list[Any]) -> list[list[int]]:
        outputs = llm.generate(some, sampling(job["max_tokens"]), use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    result = {"alone": generate(prompts[:1]), "together": generate(prompts)}
    llm.collective_rpc("matrix_report", args=(job["folder"],))
    return result


async def run_async(job: dict[str, Any]) -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from tests.serve.engine_script import engine_arguments, sampling

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(job), data_parallel_size=job["dp"]))
    numbers = iter(range(10**6))

    async def generate(prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        parameters = sampling(job["max_tokens"])
        async for output in engine.generate({"prompt_token_ids": prompt}, parameters, f"request-{next(numbers)}"):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    async def rpc(method: str, *args: Any) -> Any:
        return await asyncio.wait_for(engine.collective_rpc(method, args=args), _RPC_SECONDS)

    async def quiet() -> None:
        """Wait until no rank takes part in a step any more."""
        posted = -1
        while (now := (await rpc("matrix_posted"))[0]) != posted:
            posted = now
            await asyncio.sleep(_QUIET_SECONDS)

    async def all_at_once() -> list[list[int]]:
        return list(await asyncio.gather(*(generate(prompt) for prompt in job["prompts"])))

    try:
        await quiet()
        await rpc("matrix_begin")
        result = {"alone": [await generate(job["prompts"][0])], "together": await all_at_once()}
        for method in job["force"]:
            await quiet()
            await rpc("matrix_force", method)
            result[method] = await all_at_once()
        await quiet()
        await rpc("matrix_report", job["folder"])
        return result
    finally:
        engine.shutdown()


def main() -> None:
    job = json.load(sys.stdin)
    import vllm_ascend_patch  # noqa: F401  (before vLLM, as in a user's script)

    result = run_offline(job) if job["dp"] == 1 else asyncio.run(run_async(job))
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
