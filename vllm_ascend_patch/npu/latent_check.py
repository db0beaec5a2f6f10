# SPDX-License-Identifier: Apache-2.0
"""Refuses what a deployment asks of multi-head latent attention (MLA) beyond the model itself, which is
``core/model_support.py``'s business: release, quantisation, what else would read the cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllm_ascend_patch.core.latent_support import MAX_QUERIES
from vllm_ascend_patch.core.model_support import latent_release_problem, mla_remedy
from vllm_ascend_patch.core.model_traits import ModelTraits
from vllm_ascend_patch.core.modelslim import METHOD
from vllm_ascend_patch.releases.guard import installed_release
from vllm_ascend_patch.releases.latent import latent_obstacle

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_LAYOUT = "VLLM_KV_CACHE_LAYOUT"
"""Names axes from the outermost on: B blocks, L layers, H heads, N tokens, C elements."""


def check_latent(vllm_config: VllmConfig, model: ModelTraits) -> None:
    """Raise ``ValueError`` for what is not served with ``model``'s latent attention; nothing where it has none."""
    if not model.latent:
        return
    what = f"{model.name}: multi-head latent attention (MLA)"
    release = installed_release()
    problem = None if release is None else latent_release_problem(model, latent_obstacle(release))
    if problem is not None:
        raise ValueError(problem)
    quantization = vllm_config.model_config.quantization
    if quantization not in (None, "compressed-tensors", METHOD):
        raise ValueError(
            f"{what} with quantisation {quantization!r} is not supported on Ascend NPUs by this port: bfloat16 checkpoints "
            f"are, and W8A8 ones of compressed-tensors and ModelSlim. {mla_remedy(model)}"
        )
    if vllm_config.kv_transfer_config is not None:
        raise ValueError(
            f"{what} with --kv-transfer-config is not supported on Ascend NPUs by this port: the cache of a layer is cut "
            "into two parts, which connectors do not know. Start without it."
        )
    speculative = vllm_config.speculative_config
    drafts = 0 if speculative is None else speculative.num_speculative_tokens or 0
    if drafts >= MAX_QUERIES:
        raise ValueError(
            f"{what} with {drafts} speculative tokens is not supported on Ascend NPUs: a request decodes at most "
            f"{MAX_QUERIES} tokens at a time (npu_fused_infer_attention_score). Lower num_speculative_tokens to "
            f"{MAX_QUERIES - 1}."
        )
    layout = os.environ.get(_LAYOUT, "").strip().upper()
    if layout.startswith("B"):
        raise ValueError(
            f"{what} with {_LAYOUT}={layout} is not supported on Ascend NPUs by this port: in such a layout the blocks of a "
            "layer are not next to each other, and operators want them so. Unset it."
        )
    prefill = getattr(vllm_config.attention_config, "mla_prefill_backend", None)
    if prefill is not None:
        raise ValueError(
            f"the MLA prefill backend {getattr(prefill, 'name', prefill)} does not run on Ascend NPUs: leave it out, "
            "this port brings its own."
        )
