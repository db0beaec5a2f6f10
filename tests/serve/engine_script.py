# SPDX-License-Identifier: Apache-2.0
"""A user's own script: ``import vllm_ascend_patch``, then vLLM's offline or asynchronous engine. Run as a subprocess.

Reads a job as JSON from standard input and reports what came of it. With data parallelism it goes through the situations in
which ranks differ: one request alone, all at once, late arrivals, an aborted one, many short ones; then, where asked for,
with one MoE method after the other (``forced_worker.py``).
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  (what the test is about: one import, before vLLM)

import asyncio
import json
import random
import sys
import time
from typing import Any

from vllm import LLM

from tests.support.engine import Engine, generate_offline, job_arguments, settled, tokens_of
from tests.support.processes import report


def run_offline(job: dict[str, Any]) -> dict[str, Any]:
    llm = LLM(**job_arguments(job))
    prompts, length = job["prompts"], job["max_tokens"]
    if "watch" in job:
        llm.collective_rpc(job["watch"])
    first = generate_offline(llm, prompts[:1], length)
    rest = generate_offline(llm, prompts[1:], length)
    again = generate_offline(llm, prompts, length)  # answered from cached prefixes
    return {
        "tokens": tokens_of(first + rest),
        "again": tokens_of(again),
        "cached": [output.num_cached_tokens for output in again],
        "asked": llm.collective_rpc(job["ask"]) if "ask" in job else None,
    }


class ExpertMap:
    """Asked of workers: which logical expert each physical one of a layer holds."""

    model_runner: Any

    def physical_to_logical(self) -> list[list[int]]:
        (state,) = self.model_runner.eplb_state.model_states.values()
        return state.physical_to_logical_map.tolist()


async def run_async(job: dict[str, Any]) -> dict[str, Any]:
    prompts, length = job["prompts"], job["max_tokens"]
    async with Engine(job_arguments(job), job["dp"]) as engine:
        if "watch" in job:
            await engine.ask(job["watch"])
        alone = [await engine.generate(prompt, length) for prompt in prompts[:2]]
        together = await asyncio.gather(*(engine.generate(prompt, length) for prompt in prompts))
        aborted = asyncio.create_task(engine.generate_some_then_abort(prompts[3], 200, 5))
        late = []
        for prompt in prompts:  # each arrives while those before it decode
            late.append(asyncio.create_task(engine.generate(prompt, length)))
            await asyncio.sleep(0.05)
        late_tokens = await asyncio.gather(*late)
        aborted_after = await asyncio.wait_for(aborted, 60)
        chance = random.Random(3)
        many = [(chance.choice(prompts)[: chance.randint(1, 60)], chance.randint(1, 24)) for _ in range(job["many"])]
        counts = [len(t) for t in await asyncio.gather(*(engine.generate(p, n) for p, n in many))]
        forced = {}
        for method in job.get("force", ()):
            await settled(lambda: engine.ask("matrix_posted"), pause=1.0)  # no rank is in a step meanwhile
            await engine.ask("matrix_force", method)
            forced[method] = list(await asyncio.gather(*(engine.generate(prompt, length) for prompt in prompts)))
        asked = await engine.ask(job["ask"]) if "ask" in job else None
    return {
        "asked": asked,
        "forced": forced,
        "alone": alone,
        "together": together,
        "late": late_tokens,
        "aborted_after": aborted_after,
        "many_complete": counts == [n for _, n in many],
    }


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
    report(result)


if __name__ == "__main__":
    main()
