# SPDX-License-Identifier: Apache-2.0
"""How vLLM's latent KV cache looks to the operators, which want two dense ones. Pure functions on tensors, no vLLM here."""

from __future__ import annotations

import torch

from vllm_ascend_patch.core.latent_support import LATENT_RANK, ROPE_WIDTH


def split_cache(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """View one layer's cache as the latent cache and the rope cache; no copy, and blocks and slots stay vLLM's own.

    A row of 576 elements cannot be split in place: each part has to be dense. So the layer's memory is cut in two: all
    latents, then all rope parts. Nobody else reads the pages (no connector, no offload, one cache per layer).

    Args:
        kv_cache: ``[blocks, block size, 576]``, dense.

    Returns:
        ``[blocks, block size, 1, 512]`` and ``[blocks, block size, 1, 64]``.
    """
    blocks, block_size, width = kv_cache.shape
    if width != LATENT_RANK + ROPE_WIDTH or not kv_cache.is_contiguous():
        raise ValueError(
            f"a latent KV cache must be dense, with {LATENT_RANK + ROPE_WIDTH} elements per token: got "
            f"{list(kv_cache.shape)} with strides {list(kv_cache.stride())}"
        )
    return split_rows(kv_cache.view(-1, width), blocks * block_size, (blocks, block_size, 1))


def split_rows(rows: torch.Tensor, count: int, lead: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory of the first ``count`` rows of 576 as a latent ``[*lead, 512]`` and a rope part ``[*lead, 64]``."""
    flat = rows.view(-1)
    cut = count * LATENT_RANK
    return flat[:cut].view(*lead, LATENT_RANK), flat[cut : cut + count * ROPE_WIDTH].view(*lead, ROPE_WIDTH)
