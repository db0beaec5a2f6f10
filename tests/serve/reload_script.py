# SPDX-License-Identifier: Apache-2.0
"""An engine whose weights are replaced while it runs, as trainers do. Run as a subprocess.

Reads a job as JSON from standard input: the engine's arguments, prompts, and rounds, each a way to load again and a folder.
Reports each round's tokens, its error if there was one, and what the first rank then holds.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch_npu
from safetensors.torch import load_file

from tests.support.engine import Engine, job_arguments
from tests.support.processes import report


def tensors(folder: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by name."""
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


class Reloading:
    """Mixed into the worker: vLLM's own way to load again, and pushes of tensors into the running model."""

    model_runner: Any

    def reload(self, folder: str) -> None:
        self.model_runner.reload_weights(weights_path=folder)

    def push(self, folder: str) -> None:
        self.model_runner.get_model().load_weights(tensors(folder).items())

    def push_one_by_one(self, folder: str) -> None:
        for name, tensor in tensors(folder).items():
            self.model_runner.get_model().load_weights([(name, tensor)])

    def held(self) -> dict[str, Any]:
        """Bytes that are allocated, and where each parameter lies."""
        torch_npu.npu.synchronize()
        gc.collect()
        model = self.model_runner.get_model()
        addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        return {"allocated": torch_npu.npu.memory_allocated(), "addresses": addresses}


async def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    arguments = job_arguments(job) | {
        "worker_extension_cls": "tests.serve.reload_script.Reloading",
        "enable_prefix_caching": False,  # keys and values of other weights
    }
    rounds = []
    async with Engine(arguments, job["dp"]) as engine:
        for how, folder in [(None, None), *job["rounds"]]:
            error = None
            if how is not None:
                try:
                    await engine.ask(how, folder)
                except Exception as failure:
                    error = str(failure)
            tokens: list[Any] = []
            for _ in range(job["repeat"]):
                asked = (engine.generate(prompt, job["max_tokens"]) for prompt in job["prompts"])
                tokens.append(await asyncio.gather(*asked))
            rounds.append({"tokens": tokens, "error": error, "held": (await engine.ask("held"))[0]})
    return rounds


if __name__ == "__main__":
    report(asyncio.run(run(json.load(sys.stdin))))
