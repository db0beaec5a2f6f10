# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, int4 and mxfp4 weights that the installed vLLM or an option keeps from being served.

Which formats are served at all is ``core/weight_formats.py``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_ascend_patch.core.model_support import mxfp4_release_problem
from vllm_ascend_patch.core.model_traits import ModelTraits
from vllm_ascend_patch.releases import guard, packed_int4
from vllm_ascend_patch.releases.mxfp4 import mxfp4_obstacle

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_weights(vllm_config: VllmConfig, model: ModelTraits) -> None:
    """Raise ``ValueError`` where ``model`` has int4 or mxfp4 weights that are not served so."""
    if model.weights is None:
        return
    release = guard.installed_release()
    if model.weights.mxfp4:
        problem = mxfp4_release_problem(model, None if release is None else mxfp4_obstacle(release))
        if problem is not None:
            raise ValueError(problem)
        _check_balancing(vllm_config, model, "mxfp4 experts", "what is moved is not what was loaded")
    groups = model.weights.groups
    used = {"W4A16": any(group.w4a16 for group in groups), "W4A8": any(group.w4a8 for group in groups)}
    formats = [name for name, is_used in used.items() if is_used]
    for name in formats:
        if release is not None and not packed_int4.served(name, release):
            raise ValueError(
                f"{model.name}: int4 weights (compressed-tensors {name}) are not supported on Ascend NPUs with vLLM "
                f"{release}: that needs vLLM {packed_int4.releases(name)}. Install such a release, or use the unquantised "
                "checkpoint."
            )
    if formats:
        _check_balancing(vllm_config, model, "int4 experts", "they do not lie in one piece per expert")


def _check_balancing(vllm_config: VllmConfig, model: ModelTraits, what: str, why: str) -> None:
    options = vllm_config.additional_config
    if isinstance(options, dict) and options.get("eplb_config") is not None:
        raise ValueError(
            f"{model.name}: expert load balancing (eplb_config) of {what} is not supported on Ascend NPUs by this port: "
            f"{why}. Leave eplb_config out, or serve a checkpoint with int8 or unquantised experts."
        )
