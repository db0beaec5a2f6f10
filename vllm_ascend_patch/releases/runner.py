# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's two model runners a serve takes: V1, or V2 where the user asks for it and the release is known to work,
or where vLLM has no other."""

from __future__ import annotations

import os
from typing import NamedTuple

from vllm_ascend_patch.patching.declaration import Patch
from vllm_ascend_patch.patching.source import SourceTree

from .declared.runner_v2 import GATE
from .records import covers

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's own; 1 asks for V2, 0 for V1."""

_V1 = "vllm.v1.worker.gpu_model_runner"
_OF_V1 = (_V1, "vllm.v1.worker.dp_utils")
"""V1's own modules that patches are declared for; upstream has announced that it removes V1."""


def has_v1(tree: SourceTree | None) -> bool:
    """Whether vLLM's sources have model runner V1; yes for sources that cannot be read."""
    return tree is None or tree.locate(_V1) is not None


def gone_with_v1(patch: Patch, tree: SourceTree) -> bool:
    """Whether a patch is not needed because these sources have no model runner V1."""
    return patch.place.module in _OF_V1 and not has_v1(tree)


class Choice(NamedTuple):
    """Which runner serves, and why; or what is in the way, and what to do."""

    name: str
    why: str
    obstacle: str | None = None
    advice: str = ""


def choose(release: str | None, v1: bool) -> Choice:
    """The runner that a serve takes with vLLM ``release``, which has model runner V1 or not."""
    said, obstacle = os.environ.get(VARIABLE), v2_obstacle(release)
    if v2_asked_for():
        if obstacle is None:
            return Choice("V2", f"asked for by {VARIABLE}={said}")
        advice = f"unset {VARIABLE} or set it to 0" if v1 else "install such a vLLM"
        return Choice("V2", "", f"{VARIABLE}={said} asks for model runner V2, but {obstacle}", advice)
    if v1:
        return Choice("V1", f"the default, since it serves more than V2; {VARIABLE}=1 asks for V2")
    if said is not None:
        return Choice(
            "V1", "", f"{VARIABLE}={said} asks for model runner V1, which this vLLM does not have", f"unset {VARIABLE}"
        )
    if obstacle is None:
        return Choice("V2", "the only one that this vLLM has")
    return Choice("V2", "", f"this vLLM has model runner V2 alone, but {obstacle}", "install such a vLLM")


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
