# SPDX-License-Identifier: Apache-2.0
"""A trainer's process: two engines in it, side by side, and a third of another tensor parallel size after they are shut
down. Run by ``torchrun`` with two ranks.

Reads a job as JSON from the file that is its argument; rank 0 reports, per engine, what it answered and what its state was
made of.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from vllm import LLM
from vllm.distributed.parallel_state import destroy_model_parallel

from tests.support.engine import engine_arguments, generate_offline, tokens_of
from tests.support.processes import report
from vllm_ascend_patch.seams import serving


def engine(model: str, tp: int, graphs: list[int]) -> LLM:
    """One engine over both ranks: tensor parallel, or data parallel where ``tp`` is 1."""
    arguments = engine_arguments(
        model,
        tensor_parallel_size=tp,
        data_parallel_size=2 // tp,
        enable_expert_parallel=True,
        distributed_executor_backend="external_launcher",
        gpu_memory_utilization=0.2,
        enforce_eager=False,
        compilation_config={"cudagraph_capture_sizes": graphs},
    )
    return LLM(**arguments)


def meet_again() -> None:
    """The default process group anew: an engine's shutdown ends it, and torch cannot make it twice over the same keys."""
    launcher = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    torch.distributed.init_process_group(
        "hccl",
        store=torch.distributed.PrefixStore("again", launcher),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def state() -> dict[str, Any]:
    """Of the engine that answered last."""
    moe = serving.current().moe
    return {
        "experts": sorted(selector.facts.num_experts for selector in moe.selectors.values()),
        "mask": moe.mask.first(1 << 20).shape[0] if moe.mask is not None else 0,
        "tp": sorted(layout.tp.size for layout in moe.topologies.values()),
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    first, second = job["models"]
    found: dict[str, Any] = {}

    def ask(name: str, llm: LLM, model: dict[str, Any]) -> None:
        outputs = generate_offline(llm, model["prompts"], job["max_tokens"])
        found[name] = {"tokens": tokens_of(outputs), **state()}

    one = engine(first["path"], 2, [1, 2])
    ask("first", one, first)
    two = engine(second["path"], 2, [1, 2, 4, 8])
    ask("second, beside the first", two, second)
    ask("first, beside the second", one, first)
    for llm in (one, two):
        llm.llm_engine.engine_core.shutdown()
    destroy_model_parallel()
    meet_again()
    three = engine(first["path"], 1, [1, 2, 4])
    ask("third, with another tensor parallel size", three, first)
    if os.environ["RANK"] == "0":
        report(found)
    torch.distributed.barrier()
    three.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
