# SPDX-License-Identifier: Apache-2.0
"""Script: one engine answers the same prompts with one set of sampling parameters after the other. Reads a job: ``model``,
``prompts`` and ``parameters``, a list of what vLLM's ``SamplingParams`` take."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import json
import sys
from typing import Any

from vllm import LLM, SamplingParams

from tests.support.engine import engine_arguments
from tests.support.processes import report


def shown(table: dict[int, Any] | None) -> dict[str, Any] | None:
    """Log-probability and rank of each token."""
    return None if table is None else {str(token): [one.logprob, one.rank] for token, one in table.items()}


def main() -> None:
    job = json.load(sys.stdin)
    llm = LLM(**engine_arguments(job["model"], distributed_executor_backend="uni", **job.get("arguments", {})))
    answers = []
    for parameters in job["parameters"]:
        if "logit_bias" in parameters:  # JSON has no keys but strings
            parameters["logit_bias"] = {int(token): bias for token, bias in parameters["logit_bias"].items()}
        sampling = SamplingParams(ignore_eos=True, detokenize=False, **parameters)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in job["prompts"]], sampling, use_tqdm=False)
        answers.append(
            [
                {
                    "tokens": list(output.outputs[0].token_ids),
                    "logprobs": [shown(table) for table in output.outputs[0].logprobs or ()],
                    "prompt": [shown(table) for table in output.prompt_logprobs or ()],
                }
                for output in outputs
            ]
        )
    report(answers)


if __name__ == "__main__":
    main()
