# SPDX-License-Identifier: Apache-2.0
"""Caps the memory of the KV cache at what the attention operator can index.

A cap and no refusal: nobody asked for a number of blocks, vLLM takes what the device has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.logger import init_logger
from vllm.v1 import kv_cache_interface
from vllm.v1.core import kv_cache_utils

from vllm_ascend_patch.core.operator_limits import INT32_MAX, latent_key_elements, most_blocks

logger = init_logger(__name__)

_LATENT = getattr(kv_cache_interface, "MLAAttentionSpec", ())  # absent from the oldest releases, which do not serve MLA


def block_bytes(vllm_config: Any, specs: Mapping[str, Any]) -> int:
    """Bytes that one more block takes on this worker, over all layers.

    Layers with states share memory with layers that attend: a block is in use by one kind or the other. Then it takes the
    pages of the largest group of layers; else each layer has a page of its own.
    """
    if all(hasattr(spec, "num_kv_heads") for spec in specs.values()):
        return sum(spec.page_size_bytes for spec in specs.values())
    groups = kv_cache_utils.get_kv_cache_groups(vllm_config, dict(specs))
    return max(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in groups)


def capped(available: int, specs: Mapping[str, Any], block: int) -> int:
    """Bytes for the KV cache: ``available``, or less, with a line in the log, where they are more than can be indexed.

    Args:
        available: bytes that memory profiling left for the cache.
        specs: upstream's ``KVCacheSpec`` of each layer of this worker.
        block: bytes of a block (``block_bytes``).
    """
    pages = [spec for spec in specs.values() if hasattr(spec, "num_kv_heads")]
    if not pages:
        return available
    most = min(most_blocks(_key_elements(spec)) for spec in pages)
    if available // block <= most:
        return available
    logger.info(
        "KV cache: memory was found for %d blocks, %d blocks are used: the keys and values of a layer, or its latents, may "
        "be %d elements (npu_fused_infer_attention_score). %.1f GiB stay free%s",
        available // block,
        most,
        INT32_MAX,
        (available - most * block) / 2**30,
        "" if _heads(pages) == 1 else "; fewer KV heads per rank (--tensor-parallel-size) would use more",
    )
    return most * block


def _key_elements(spec: Any) -> int:
    """Elements that a block adds to the operator's paged key."""
    if isinstance(spec, _LATENT):
        return latent_key_elements(spec.block_size)
    return int(spec.page_size_bytes // spec.dtype.itemsize)


def _heads(pages: list[Any]) -> int:
    return max(spec.num_kv_heads for spec in pages)
