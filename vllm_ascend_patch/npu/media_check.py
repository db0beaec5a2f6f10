# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, images, video and sound in requests where nothing of their encoder was run.

The models are served with text, which is what the option that each message names leaves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_RUN = dict.fromkeys(("Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"), ("image",))
"""What requests may bring besides text, by architecture: what docs/models.md has a row of."""


def check_media(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for a model whose requests may bring anything besides text."""
    model = vllm_config.model_config
    if not model.is_multimodal_model:
        return
    run = _RUN.get(model.architectures[0], ())
    refused = [kind for kind in _kinds(model) if kind not in run]
    limits = model.get_multimodal_config()
    allowed = [kind for kind in refused if limits.get_limit_per_prompt(kind) > 0]
    if allowed:
        none = json.dumps(dict.fromkeys(refused, 0))
        raise ValueError(
            f"{model.model}: requests with {' or '.join(kind.replace('_', ' ') for kind in allowed)} are not supported on "
            f"Ascend NPUs by this port: requests with {' and '.join(('text', *run))} are. Start with --limit-mm-per-prompt "
            f"'{none}'."
        )


def _kinds(model: Any) -> list[str]:
    """What else than text the model's class takes; nothing where it has no processor, as a drafter's."""
    from vllm.multimodal import MULTIMODAL_REGISTRY as registry

    find = getattr(registry, "get_processing_info", None) or registry._create_processing_info
    try:
        return sorted(find(model).get_supported_mm_limits())
    except ValueError:
        return []
