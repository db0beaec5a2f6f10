# SPDX-License-Identifier: Apache-2.0
"""Declares the patches of the exchange in which engines ask each other whether any has work left. Imports neither torch nor
vLLM.

What they do is in ``seams/step/engines.py``.
"""

from __future__ import annotations

from vllm_ascend_patch.patching import Kind, Patch

_CONFIG = "vllm.config.parallel:ParallelConfig"
_FIRST_CONFIG = "vllm.config:ParallelConfig"
_UPSTREAM = "none: vLLM leaves the collective's own error as it is"
_REMOVE_WHEN = "vLLM's engines name the rank behind a broken exchange"


def _wrap(name: str, target: str, releases: str, implementation: str, why: str, how: str, *reads: str) -> Patch:
    return Patch(
        id=f"engines-{name}",
        target=target,
        kind=Kind.WRAP,
        implementation=f"vllm_ascend_patch.seams.step.engines:{implementation}",
        releases=releases,
        reads=reads,
        why=why,
        how=how,
        upstream=_UPSTREAM,
        remove_when=_REMOVE_WHEN,
    )


def _group(name: str, config: str, releases: str) -> Patch:
    return _wrap(
        name,
        f"{config}.stateless_init_dp_group",
        releases,
        "stateless_init_dp_group",
        "An engine that has lost another one knows neither its rank nor its host.",
        "Each engine writes rank, host and process into the store of the group that it has just joined.",
    )


def _exchange(name: str, target: str, releases: str) -> Patch:
    return _wrap(
        name,
        target,
        releases,
        "exchange",
        "Where a rank has gone, the engines may meet it before the step vector does, as gloo's bare error.",
        "Turns the collective's error into one that names the rank, by what stands in the group's store.",
        "dp_group",
    )


PATCHES: tuple[Patch, ...] = (
    _group("group", _CONFIG, ">=0.10.1"),
    _exchange("unfinished", f"{_CONFIG}.has_unfinished_dp", ">=0.10.1"),
    _exchange("state", f"{_CONFIG}.sync_dp_state", ">=0.21"),
    _group("group-in-one-module", _FIRST_CONFIG, "<0.10.1"),
    _exchange("unfinished-in-one-module", f"{_FIRST_CONFIG}.has_unfinished_dp", "<0.10.1"),
)
