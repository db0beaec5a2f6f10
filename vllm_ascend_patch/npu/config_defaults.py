# SPDX-License-Identifier: Apache-2.0
"""Fills in what upstream leaves to an out-of-tree platform: worker class, block size, scheduling; and takes back what
was chosen for other devices.

A value that the user gave is kept where it can work; what is changed is said in the log. Refusals are
``config_check.py``'s, compile and graph mode ``compilation_defaults.py``'s.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_ascend_patch.core.model_support import keeps_windows
from vllm_ascend_patch.core.model_traits import WINDOW_KEYS
from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE
from vllm_ascend_patch.releases import guard
from vllm_ascend_patch.releases.drafts import asynchronous_obstacle
from vllm_ascend_patch.seams.config import uses_runner_v2

from . import compilation_defaults
from .config_check import model_traits
from .states import arrange_cache

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

_WORKER = "vllm_ascend_patch.npu.worker.NPUWorker"
_ALL2ALL = "allgather_reducescatter"
_ALL2ALL_VARIABLE = "VLLM_ALL2ALL_BACKEND"  # how it was chosen before there was an option


def take_back_backend(vllm_config: VllmConfig) -> None:
    """Forget the attention backend that vLLM chose for Gemma 4's layers of two head sizes, before a platform is asked: here
    each layer gets a layout of its own."""
    model, attention = vllm_config.model_config, getattr(vllm_config, "attention_config", None)
    backend: Any = getattr(attention, "backend", None)
    if model is None or getattr(backend, "name", "") != "TRITON_ATTN":
        return
    if any(architecture.startswith("Gemma4") for architecture in model.architectures):
        logger.info(
            "Ascend NPU: the attention backend %s, which vLLM chooses for this model, is not used.", backend.name
        )
        vllm_config.attention_config.backend = None


def apply_defaults(vllm_config: VllmConfig) -> None:
    """Change ``vllm_config`` in place; idempotent, since vLLM calls the platform more than once."""
    parallel = vllm_config.parallel_config
    if parallel.worker_cls == "auto":
        parallel.worker_cls = _WORKER
    parallel.disable_custom_all_reduce = True
    _moe_backends(vllm_config)
    _block_size(vllm_config)
    _windows(vllm_config)
    if vllm_config.model_config is not None:
        arrange_cache(vllm_config, model_traits(vllm_config))
    compilation_defaults.apply(vllm_config)
    _async_scheduling(vllm_config)


def _moe_backends(vllm_config: VllmConfig) -> None:
    """Experts and how tokens reach them are this port's, whatever a start script written for other devices asks for."""
    parallel = vllm_config.parallel_config
    found = getattr(parallel, "all2all_backend", None) or os.environ.get(_ALL2ALL_VARIABLE)
    if found not in (None, "", "naive", _ALL2ALL):
        logger.info(
            "Ascend NPU: --all2all-backend %s is not used: tokens reach their experts by AllGather, MC2 or AllToAll, as "
            "VLLM_ASCEND_PATCH_MOE_COMM says.",
            found,
        )
        os.environ.pop(_ALL2ALL_VARIABLE, None)
        if hasattr(parallel, "all2all_backend"):
            parallel.all2all_backend = _ALL2ALL
    kernels = getattr(vllm_config, "kernel_config", None)
    found = getattr(kernels, "moe_backend", "auto")
    if kernels is not None and found != "auto":
        logger.info("Ascend NPU: --moe-backend %s is not used: experts run through torch_npu's grouped matmul.", found)
        kernels.moe_backend = "auto"


def _windows(vllm_config: VllmConfig) -> None:
    """A sliding window that no request outgrows is none, and left out."""
    if vllm_config.model_config is None:
        return
    traits, text = model_traits(vllm_config), vllm_config.model_config.hf_text_config
    if not traits.windows or keeps_windows(traits):
        return
    logger.info(
        "Ascend NPU: the sliding window of %d tokens hides nothing from requests of up to %s tokens: it is left out.",
        min(traits.windows),
        traits.max_model_len,
    )
    for key in WINDOW_KEYS:
        if getattr(text, key, None) is not None:
            setattr(text, key, None)
    if vllm_config.cache_config is not None:
        vllm_config.cache_config.sliding_window = None


def _block_size(vllm_config: VllmConfig) -> None:
    cache = vllm_config.cache_config
    if cache is None:
        return
    # Without the flag, whatever is there came from the user: those releases leave the default to the platform.
    if cache.block_size is None or not getattr(cache, "user_specified_block_size", True):
        cache.block_size = BLOCK_SIZE
    elif cache.block_size % BLOCK_SIZE:
        raise ValueError(
            f"--block-size {cache.block_size} is not supported on Ascend NPUs: paged attention of more than one query "
            f"token needs a multiple of {BLOCK_SIZE}. Leave the option out, or give such a multiple."
        )


def _async_scheduling(vllm_config: VllmConfig) -> None:
    """Attention reads exact key lengths on the host; with drafts in flight upstream has a bound until they are corrected.

    Upstream itself schedules drafts from the prompt (``ngram``) in turn, and says so.
    """
    scheduler = vllm_config.scheduler_config
    if vllm_config.speculative_config is None or not getattr(scheduler, "async_scheduling", False):
        return
    obstacle = asynchronous_obstacle(guard.installed_release() or "", uses_runner_v2(vllm_config))
    if obstacle is not None:
        logger.info("Ascend NPU: async scheduling with drafts is switched off: %s.", obstacle)
        scheduler.async_scheduling = False
