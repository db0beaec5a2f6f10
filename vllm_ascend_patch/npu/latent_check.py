# SPDX-License-Identifier: Apache-2.0
"""Refuses what a deployment asks of multi-head latent attention (MLA) beyond the model itself, which is
``core/model_support.py``'s business: release, quantisation, what else would read the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_ascend_patch.core.model_support import mla_remedy
from vllm_ascend_patch.core.model_traits import ModelTraits
from vllm_ascend_patch.releases import declarations, guard, records

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_latent(vllm_config: VllmConfig, model: ModelTraits) -> None:
    """Raise ``ValueError`` for what is not served with ``model``'s latent attention; nothing where it has none."""
    if not model.latent:
        return
    what = f"{model.name}: multi-head latent attention (MLA)"
    release = guard.installed_release()
    layer = next(patch for patch in declarations.patches() if patch.id == "latent-padding")
    if release is not None and not records.covers(layer, release):
        raise ValueError(
            f"{what} is not supported on Ascend NPUs with vLLM {release}: this port needs vLLM {layer.releases} for it, "
            f"which asks platforms for its prefill. Install such a release, or do without. {mla_remedy(model)}"
        )
    if vllm_config.model_config.quantization is not None:
        raise ValueError(
            f"{what} with quantisation {vllm_config.model_config.quantization!r} is not supported on Ascend NPUs by this "
            f"port: bfloat16 checkpoints are. {mla_remedy(model)}"
        )
    if vllm_config.kv_transfer_config is not None:
        raise ValueError(
            f"{what} with --kv-transfer-config is not supported on Ascend NPUs by this port: the cache of a layer is cut "
            "into two parts, which connectors do not know. Start without it."
        )
    prefill = getattr(vllm_config.attention_config, "mla_prefill_backend", None)
    if prefill is not None:
        raise ValueError(
            f"the MLA prefill backend {getattr(prefill, 'name', prefill)} does not run on Ascend NPUs: leave it out, "
            "this port brings its own."
        )
