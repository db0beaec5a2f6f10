# SPDX-License-Identifier: Apache-2.0
"""Script: asks vLLM for configurations and reports how each was refused, or that it was not. No engine is started. Reads a
list of (model, arguments) as JSON from standard input."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import json
import sys
from typing import Any

from vllm.engine.arg_utils import EngineArgs

from tests.support.engine import engine_arguments
from tests.support.processes import report


def refusal(model: str, arguments: dict[str, Any]) -> str | None:
    try:
        EngineArgs(**engine_arguments(model, **arguments)).create_engine_config()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    report([refusal(model, arguments) for model, arguments in json.load(sys.stdin)])
