# SPDX-License-Identifier: Apache-2.0
"""Takes over the mxfp4 experts that vLLM found in a checkpoint of gpt-oss, and says what they become in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_ascend_patch.core.weight_formats import GPT_OSS_MXFP4

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)
_GIB = 2**30


def take_over_mxfp4(vllm_config: VllmConfig) -> None:
    """Put this port's method in the place of upstream's; nothing for other models. Idempotent."""
    found = vllm_config.quant_config
    if found is None or found.get_name() != GPT_OSS_MXFP4:
        return
    from vllm_ascend_patch.seams.moe.mxfp4 import NPUMxfp4Config

    if isinstance(found, NPUMxfp4Config):
        return
    vllm_config.quant_config = NPUMxfp4Config(found.ignored_layers)
    weights = _expert_weights(vllm_config.model_config.hf_text_config)
    logger.info(
        "Ascend NPU: the experts' mxfp4 weights are turned into bfloat16 while they are loaded: %.1f GiB of memory over all "
        "ranks, where the checkpoint has %.1f.",
        weights * 2 / _GIB,
        weights * (0.5 + 1 / 32) / _GIB,
    )


def _expert_weights(config: Any) -> int:
    """Numbers in the experts of all layers."""
    layer = config.num_local_experts * 3 * config.hidden_size * config.intermediate_size
    return int(config.num_hidden_layers * layer)
