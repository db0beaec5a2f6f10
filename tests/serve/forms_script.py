# SPDX-License-Identifier: Apache-2.0
"""Models of several kinds, one after the other on one device, each in an engine of its own. Run as a subprocess.

Reads a list of jobs (a model, prompts, the engine's arguments) as JSON from standard input; reports each one's tokens and
the number of its KV blocks, or the error that ended it.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import gc
import json
import sys
import traceback
from typing import Any

from vllm import LLM

from tests.support.engine import engine_arguments, generate_offline, tokens_of
from tests.support.processes import report

NEW_TOKENS = 8


def answer(job: dict[str, Any]) -> dict[str, Any]:
    llm = LLM(**engine_arguments(job["model"], **job["arguments"]))
    tokens = tokens_of(generate_offline(llm, job["prompts"], NEW_TOKENS))
    return {"tokens": tokens, "blocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks}


def main() -> None:
    results = []
    for job in json.load(sys.stdin):
        try:
            results.append(answer(job))
        except Exception as error:
            traceback.print_exc()
            results.append({"error": f"{type(error).__name__}: {error}"})
        gc.collect()
    report(results)


if __name__ == "__main__":
    main()
