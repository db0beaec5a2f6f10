# SPDX-License-Identifier: Apache-2.0
"""Declares the patches of the exchange in which engines ask each other whether any has work left, and of a server's end once
one of its engines has failed. Imports neither torch nor vLLM.

What they do is in ``seams/step/engines.py``.
"""

from __future__ import annotations

from typing import TypedDict

from vllm_ascend_patch.patching import Kind, Patch

_CONFIG = "vllm.config.parallel:ParallelConfig"
_FIRST_CONFIG = "vllm.config:ParallelConfig"
_MANAGER = "vllm.v1.engine.utils:CoreEngineProcManager"
_CLIENT = "vllm.v1.engine.core_client:BackgroundResources"


class _Same(TypedDict):
    """What the patches of a group, or of an exchange, have in common."""

    kind: Kind
    implementation: str
    reads: tuple[str, ...]
    why: str
    how: str
    upstream: str
    remove_when: str


_GROUP: _Same = {
    "kind": Kind.WRAP,
    "implementation": "vllm_ascend_patch.seams.step.engines:stateless_init_dp_group",
    "reads": (),
    "why": "An engine that has lost another one knows neither its rank nor its host.",
    "how": "Each engine writes rank, host and process into the store of the group that it has just joined.",
    "upstream": "none: vLLM leaves the collective's own error as it is",
    "remove_when": "vLLM's engines name the rank behind a broken exchange",
}
_EXCHANGE: _Same = {
    **_GROUP,
    "implementation": "vllm_ascend_patch.seams.step.engines:exchange",
    "reads": ("dp_group",),
    "why": "Where a rank has gone, the engines may meet it before the step vector does, as gloo's bare error.",
    "how": "Turns the collective's error into one that names the rank, by what stands in the group's store; ends the engine "
    "where its worker has ended and the collective never does.",
}
_END: _Same = {
    "kind": Kind.WRAP,
    "implementation": "vllm_ascend_patch.seams.step.engines:wait_for_engines",
    "reads": (),
    "why": "vLLM's server shuts down in order after an engine has failed, with exit code 0: nothing starts it again.",
    "how": "At its very end, vLLM's own command looks whether an engine failed, and takes the watchdog's exit code if so.",
    "upstream": "none: vLLM does not look at the engine's exit code",
    "remove_when": "a server that has lost an engine ends with a code that is not 0",
}
_SAID: _Same = {
    **_END,
    "implementation": "vllm_ascend_patch.seams.step.engines:validate_alive",
    "why": "An API server that an engine tells of its failure kills it before it has ended: its exit code says nothing.",
    "how": "Once an engine has said so, vLLM's own command takes the watchdog's exit code at its very end.",
}

PATCHES: tuple[Patch, ...] = (
    Patch(
        id="engines-group",
        target=f"{_CONFIG}.stateless_init_dp_group",
        releases=">=0.10.1",
        **_GROUP,
    ),
    Patch(
        id="engines-unfinished",
        target=f"{_CONFIG}.has_unfinished_dp",
        releases=">=0.10.1",
        **_EXCHANGE,
    ),
    Patch(
        id="engines-state",
        target=f"{_CONFIG}.sync_dp_state",
        releases=">=0.21",
        **_EXCHANGE,
    ),
    Patch(
        id="engines-end",
        target=f"{_MANAGER}.monitor_engine_liveness",
        releases=">=0.20",
        **_END,
    ),
    Patch(
        id="engines-end-headless",
        target=f"{_MANAGER}.join_first",
        releases="<0.20",
        **_END,
    ),
    Patch(
        id="engines-dead",
        target=f"{_CLIENT}.validate_alive",
        releases=">=0.10",
        **_SAID,
    ),
    Patch(
        id="engines-group-in-one-module",
        target=f"{_FIRST_CONFIG}.stateless_init_dp_group",
        releases="<0.10.1",
        **_GROUP,
    ),
    Patch(
        id="engines-unfinished-in-one-module",
        target=f"{_FIRST_CONFIG}.has_unfinished_dp",
        releases="<0.10.1",
        **_EXCHANGE,
    ),
)
