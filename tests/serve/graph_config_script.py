# SPDX-License-Identifier: Apache-2.0
"""Script: makes vLLM's configuration for a model with several settings and reports what the platform made of each. No
engine is started. Takes the checkpoint."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import os
import sys
from typing import Any

import vllm.envs
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from tests.support.installed import HAS_KERNEL_REGISTRY
from tests.support.processes import report

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "enforce eager": {"enforce_eager": True},
    "full graphs": {"compilation_config": {"cudagraph_mode": "FULL"}},
    "full decode graphs": {"compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}},
    "pieces": {"compilation_config": {"cudagraph_mode": "PIECEWISE"}},
    "no graphs": {"compilation_config": {"cudagraph_mode": "NONE"}},
    "not compiled": {"compilation_config": {"mode": 0}},
    "torch.compile alone": {"compilation_config": {"mode": 1}},
    "inductor": {"compilation_config": {"backend": "inductor"}},
    "own sizes": {"compilation_config": {"cudagraph_capture_sizes": [4, 2]}},
    "many layers": {
        "hf_overrides": {"num_hidden_layers": 94},
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "compilation_config": {"cudagraph_mode": "PIECEWISE"},
    },
    "forced alltoall": {"tensor_parallel_size": 2, "enable_expert_parallel": True},
}


if HAS_KERNEL_REGISTRY:  # else refused
    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    SETTINGS["drafts from the prompt"] = {"speculative_config": drafts}


def resolved(checkpoint: str, setting: str) -> dict[str, Any]:
    os.environ["VLLM_ASCEND_PATCH_MOE_COMM"] = "alltoall" if setting == "forced alltoall" else "auto"
    sizes = {"max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 128}
    arguments = EngineArgs(
        model=checkpoint, skip_tokenizer_init=True, dtype="float16", **{**sizes, **SETTINGS[setting]}
    )
    compilation = arguments.create_engine_config().compilation_config
    return {
        "mode": compilation.mode.name,
        "backend": compilation.backend,
        "graphs": compilation.cudagraph_mode.name,
        "sizes": compilation.cudagraph_capture_sizes,
    }


SCHEDULERS: tuple[tuple[int | None, int | None], ...] = (
    (None, None),
    (2048, 1000),
    (2048, 100),
    (2048, 131),
    (2048, 3),
    (300, 256),
    (100, 64),
)
"""``max_num_batched_tokens`` and ``max_num_seqs``; None is what a serve without the option gets."""


def largest_graph(checkpoint: str, tokens: int | None, requests: int | None) -> list[int]:
    """The two settings as a serve resolves them, and the tokens of the largest graph."""
    os.environ["VLLM_ASCEND_PATCH_MOE_COMM"] = "auto"
    arguments = EngineArgs(
        model=checkpoint,
        skip_tokenizer_init=True,
        dtype="float16",
        max_num_batched_tokens=tokens,
        max_num_seqs=requests,
    )
    config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    scheduler, sizes = config.scheduler_config, config.compilation_config.cudagraph_capture_sizes
    return [scheduler.max_num_batched_tokens, scheduler.max_num_seqs, max(sizes)]


if __name__ == "__main__":
    found: dict[str, Any] = {setting: resolved(sys.argv[1], setting) for setting in SETTINGS}
    found["artifacts"] = getattr(vllm.envs, "VLLM_USE_AOT_COMPILE", False)  # not in older releases
    report(found | {"largest graphs": [largest_graph(sys.argv[1], *scheduler) for scheduler in SCHEDULERS]})
