# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's two model runners a serve takes: V1, or V2 where the user asks for it and the release is known to work."""

from __future__ import annotations

import os

from .declared.runner_v2 import GATE
from .records import covers

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's own; 1 asks for V2, 0 for V1."""


def v2_asked_for() -> bool:
    """Whether the user wants model runner V2."""
    return os.environ.get(VARIABLE, "0").strip().lower() not in ("", "0", "false")


def v2_obstacle(release: str | None) -> str | None:
    """Why model runner V2 is not served on a release, in words; None if it is."""
    if release is None:
        return "the release of vLLM is unknown"
    if covers(GATE, release):
        return None
    return f"it is served with vLLM {GATE.releases}, and this is {release}"
