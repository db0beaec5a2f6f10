# SPDX-License-Identifier: Apache-2.0
"""An engine that is profiled while it answers, and again after that. Run as a subprocess.

Reads a job as JSON from standard input (model, folder, prompts) and reports the tokens of both times.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401

import json
import sys

from vllm import LLM

from tests.support.engine import engine_arguments, generate_offline, tokens_of
from tests.support.processes import report


def main() -> None:
    job = json.load(sys.stdin)
    profiler = {"profiler": "torch", "torch_profiler_dir": job["folder"], "torch_profiler_with_stack": False}
    llm = LLM(**engine_arguments(job["model"], profiler_config=profiler, tensor_parallel_size=2))
    tokens = []
    for _ in range(2):
        llm.start_profile()
        tokens.append(tokens_of(generate_offline(llm, job["prompts"], 8)))
        llm.stop_profile()
    report(tokens)


if __name__ == "__main__":
    main()
