# SPDX-License-Identifier: Apache-2.0
"""One engine of the matrix, run as a subprocess: stock vLLM after one import, driven through the situations that tell.

Reads a job as JSON from standard input and reports the tokens; the workers write files of their own (``worker.py``). With
data parallelism single requests come first, so that ranks without work have to keep step.
Imports nothing at its head that takes time: every process that the engine spawns imports this module again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support.engine import Engine, generate_offline, job_arguments, settled, tokens_of
from tests.support.processes import report

_RPC_SECONDS = 180  # some releases wait for ever for an engine that ended
_QUIET_SECONDS = 1.0  # longer than a step: ranks that still run dummy steps send vectors meanwhile


def run_offline(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    llm = LLM(**job_arguments(job))
    llm.collective_rpc("matrix_begin")

    def generate(some: list[list[int]]) -> list[list[int]]:
        return tokens_of(generate_offline(llm, some, job["max_tokens"]))

    result = {"alone": [generate([job["prompts"][i]])[0] for i in job["alone"]], "together": generate(job["prompts"])}
    llm.collective_rpc("matrix_report", args=(job["folder"],))
    return result


async def run_async(job: dict[str, Any]) -> dict[str, Any]:
    async with Engine(job_arguments(job), job["dp"]) as engine:

        async def ask(method: str, *args: Any) -> Any:
            return await engine.ask(method, *args, seconds=_RPC_SECONDS)

        async def quiet() -> None:
            """Wait until no rank takes part in a step any more."""
            await settled(lambda: ask("matrix_posted"), pause=_QUIET_SECONDS, seconds=_RPC_SECONDS)

        async def all_at_once() -> list[list[int]]:
            return list(await asyncio.gather(*(engine.generate(p, job["max_tokens"]) for p in job["prompts"])))

        await quiet()
        await ask("matrix_begin")
        alone = [await engine.generate(job["prompts"][i], job["max_tokens"]) for i in job["alone"]]
        result = {"alone": alone, "together": await all_at_once()}
        for method in job["force"]:
            await quiet()
            await ask("matrix_force", method)
            result[method] = await all_at_once()
        await quiet()
        await ask("matrix_report", job["folder"])
        return result


def main() -> None:
    job = json.load(sys.stdin)
    import vllm_ascend_patch  # noqa: F401  (before vLLM, as in a user's script)

    report(run_offline(job) if job["dp"] == 1 else asyncio.run(run_async(job)))


if __name__ == "__main__":
    main()
