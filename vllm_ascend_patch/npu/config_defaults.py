# SPDX-License-Identifier: Apache-2.0
"""Fills in what upstream leaves to an out-of-tree platform: worker class, block size, scheduling.

A value that the user gave is kept where it can work; what is changed is said in the log. Refusals are
``config_check.py``'s, compile and graph mode ``compilation_defaults.py``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE

from . import compilation_defaults

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

_WORKER = "vllm_ascend_patch.npu.worker.NPUWorker"


def apply_defaults(vllm_config: VllmConfig) -> None:
    """Change ``vllm_config`` in place; idempotent, since vLLM calls the platform more than once."""
    parallel = vllm_config.parallel_config
    if parallel.worker_cls == "auto":
        parallel.worker_cls = _WORKER
    parallel.disable_custom_all_reduce = True
    _block_size(vllm_config)
    compilation_defaults.apply(vllm_config)
    _async_scheduling(vllm_config)


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
    """Attention reads exact context lengths on the host; with draft tokens in flight upstream has only a bound."""
    scheduler = vllm_config.scheduler_config
    if vllm_config.speculative_config is not None and getattr(scheduler, "async_scheduling", False):
        logger.info("Ascend NPU: async scheduling is switched off, because speculative decoding is on.")
        scheduler.async_scheduling = False
