# SPDX-License-Identifier: Apache-2.0
"""Drives vLLM's engines for programs that count, time or compare: how they are made, asked, and shut down.

Imports vLLM inside functions: every process that an engine spawns imports its program again, and the program has to import
the patch set first. What is asked in which order is the program's own business, and so is what it reports.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")


def engine_arguments(model: str, **changes: Any) -> dict[str, Any]:
    """Arguments of an engine for a tiny model without a tokenizer; ``changes`` come last."""
    return {
        "model": model,
        "skip_tokenizer_init": True,
        "dtype": "float16",
        "max_model_len": 512,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 128,  # longer prompts are prefilled in chunks
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.3,
        "seed": 0,
        "enforce_eager": True,  # captures cost each engine their time; who needs graphs asks for them
        **changes,
    }


def job_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the engine of a job: its ``model``, ``tp``, ``ep`` and, if any, ``dtype`` and ``arguments``."""
    changes = {"dtype": job.get("dtype", "float16"), **job.get("arguments", {})}
    return engine_arguments(job["model"], tensor_parallel_size=job["tp"], enable_expert_parallel=job["ep"], **changes)


def sampling(max_tokens: int) -> Any:
    """vLLM's ``SamplingParams`` for exactly ``max_tokens`` greedy token ids."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)


def generate_offline(llm: Any, prompts: list[list[int]], max_tokens: int) -> list[Any]:
    """What vLLM's ``LLM`` answers to prompts of token ids, as ``RequestOutput``."""
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return list(llm.generate(requests, sampling(max_tokens), use_tqdm=False))


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    """The generated token ids of each ``RequestOutput``."""
    return [list(output.outputs[0].token_ids) for output in outputs]


class Engine:
    """vLLM's asynchronous engine over ``dp`` data-parallel ranks; an asynchronous context manager that shuts it down."""

    def __init__(self, arguments: dict[str, Any], dp: int) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, data_parallel_size=dp))
        self._requests = 0

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engine = self._engine
        del self._engine  # or it would be taken down once more, by an interpreter that is half gone
        engine.shutdown()

    async def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        """The token ids that continue a prompt of token ids."""
        tokens: list[int] = []
        async for output in self._stream(prompt, max_tokens, self._name()):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    async def generate_some_then_abort(self, prompt: list[int], max_tokens: int, wanted: int) -> int:
        """Abort a request that has generated ``wanted`` tokens; how many they were then, or -1 when it ended before."""
        name = self._name()
        async for output in self._stream(prompt, max_tokens, name):
            if len(output.outputs[0].token_ids) >= wanted:
                await self._engine.abort(name)
                return len(output.outputs[0].token_ids)
        return -1

    async def ask(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        """Call a method of every worker (``collective_rpc``); the answers of one rank's engine.

        Raises:
            TimeoutError: after ``seconds``: some releases wait for ever for an engine that ended.
        """
        return await asyncio.wait_for(self._engine.collective_rpc(method, args=args), seconds)

    def _name(self) -> str:
        self._requests += 1
        return f"request-{self._requests}"

    def _stream(self, prompt: list[int], max_tokens: int, name: str) -> Any:
        return self._engine.generate({"prompt_token_ids": prompt}, sampling(max_tokens), name)


async def settled(read: Callable[[], Awaitable[_T]], pause: float, seconds: float = 60.0) -> _T:
    """What ``read`` gives once it gives the same twice, ``pause`` seconds apart: no rank runs dummy steps any more.

    Raises:
        TimeoutError: it still changed after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    before = await read()
    while time.monotonic() < deadline:
        await asyncio.sleep(pause)
        now = await read()
        if now == before:
            return now
        before = now
    raise TimeoutError(f"the ranks still run steps {seconds:g} s after the last request: {before}")
