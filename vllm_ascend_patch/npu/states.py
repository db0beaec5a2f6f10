# SPDX-License-Identifier: Apache-2.0
"""What a configuration needs for layers that keep a state in place of keys and values, and what is refused with them.

Which models are served is ``core/model_support.py``'s; the layers are in ``gated_delta/``.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_ascend_patch.core.model_support import state_release_problem
from vllm_ascend_patch.core.model_traits import ModelTraits
from vllm_ascend_patch.releases.guard import installed_release
from vllm_ascend_patch.releases.states import states_obstacle
from vllm_ascend_patch.seams.config import uses_runner_v2

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)


@cache
def hybrid_caches() -> bool:
    """Whether the installed vLLM's caches for layers of several kinds are used here."""
    release = installed_release()
    return release is not None and states_obstacle(release) is None


def register_layers() -> None:
    """Register this port's layers with vLLM, where it has such layers; called when a worker starts."""
    if hybrid_caches():
        from .gated_delta.layer import register

        register()


def check_states(vllm_config: VllmConfig, model: ModelTraits) -> None:
    """Raise ``ValueError`` for what is not served with ``model``'s layers with states; nothing where it has none."""
    if not model.states:
        return
    release = installed_release()
    problem = state_release_problem(model, None if release is None else states_obstacle(release))
    if problem is not None:
        raise ValueError(problem)
    asked = {
        "speculative decoding (--speculative-config)": vllm_config.speculative_config is not None,
        "transfer of KV caches (--kv-transfer-config)": vllm_config.kv_transfer_config is not None,
        "model runner V2 (VLLM_USE_V2_MODEL_RUNNER=1)": uses_runner_v2(vllm_config),
        "--disable-hybrid-kv-cache-manager": vllm_config.scheduler_config.disable_hybrid_kv_cache_manager is True,
    }
    for what, found in asked.items():
        if found:
            raise ValueError(
                f"{model.name}: {what} is not supported on Ascend NPUs by this port with layers that keep a state "
                f"({', '.join(model.states)}). Start without it."
            )


def arrange_cache(vllm_config: VllmConfig, model: ModelTraits) -> None:
    """Caches for layers of several kinds where there are layers with states, and one kind of cache elsewhere: windows keep
    all their blocks. Prefix caching is off with states: only the last one of each request is kept."""
    if not hybrid_caches():
        return  # the platform has said so
    if not model.states:
        vllm_config.scheduler_config.disable_hybrid_kv_cache_manager = True
        if vllm_config.model_config.is_hybrid:  # its class can have states, its layers have none
            vllm_config.cache_config.mamba_cache_mode = "none"
        return
    vllm_config.scheduler_config.disable_hybrid_kv_cache_manager = False
    cache = vllm_config.cache_config
    if cache.enable_prefix_caching:
        logger.info("Ascend NPU: prefix caching is switched off: states of layers are kept for running requests only.")
        cache.enable_prefix_caching = False
    cache.mamba_cache_mode = "none"
    cache.mamba_block_size = vllm_config.model_config.max_model_len
