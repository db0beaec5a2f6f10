# SPDX-License-Identifier: Apache-2.0
"""Caps the memory of the KV cache at what the attention operator can index.

A cap and no refusal: nobody asked for a number of blocks, vLLM takes what the device has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.logger import init_logger

from vllm_ascend_patch.core.operator_limits import INT32_MAX, most_blocks

logger = init_logger(__name__)


def capped(available: int, specs: Mapping[str, Any]) -> int:
    """Bytes for the KV cache: ``available``, or less, with a line in the log, where they are more than can be indexed.

    Args:
        available: bytes that memory profiling left for the cache.
        specs: upstream's ``KVCacheSpec`` of each layer of this worker. Each layer has pages of its own, since the port
            does without hybrid caches (``NPUPlatform.support_hybrid_kv_cache``).
    """
    pages = [spec for spec in specs.values() if hasattr(spec, "num_kv_heads")]
    if not pages:
        return available
    most = min(most_blocks(spec.page_size_bytes // spec.dtype.itemsize) for spec in pages)
    block = sum(spec.page_size_bytes for spec in specs.values())
    if available // block <= most:
        return available
    logger.info(
        "KV cache: memory was found for %d blocks, %d blocks are used: the keys and values of a layer may be %d elements "
        "(npu_fused_infer_attention_score). %.1f GiB stay free; fewer KV heads per rank (--tensor-parallel-size) would use "
        "more",
        available // block,
        most,
        INT32_MAX,
        (available - most * block) / 2**30,
    )
    return most * block
