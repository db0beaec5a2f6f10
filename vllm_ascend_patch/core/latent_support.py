# SPDX-License-Identifier: Apache-2.0
"""Which multi-head latent attention (MLA) the operators take: limits as pure functions on sizes. No torch, no vLLM.

Sources: op-plugin's page of npu_fused_infer_attention_score and CANN's host code of A2 and A3 (``docs/virtual-npu.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

LATENT_RANK = 512
ROPE_WIDTH = 64
HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Query heads of a decode call; other counts are padded to the next one."""
PREFILL_WIDTHS = ((192, 128), (256, 256))
"""Widths of keys (nope + rope) and values that a prefill call takes."""
MAX_QUERIES = 16
"""Query tokens per request of a decode call."""


@dataclass(frozen=True, kw_only=True)
class LatentSizes:
    """A model's latent attention: rank of the latent, widths of a head's parts."""

    rank: int
    rope: int
    nope: int
    value: int


def padded_heads(heads: int) -> int:
    """The smallest number of query heads that a decode call takes and that holds ``heads``."""
    return next(count for count in HEADS if count >= heads)


def problem(sizes: LatentSizes, heads: int) -> str | None:
    """The limit that latent attention with ``heads`` query heads per rank breaks, None where it is served."""
    pair = (sizes.nope + sizes.rope, sizes.value)
    if sizes.rank != LATENT_RANK:
        return f"a latent (kv_lora_rank) of {sizes.rank}: only {LATENT_RANK} is supported"
    if sizes.rope != ROPE_WIDTH:
        return f"a rotary part (qk_rope_head_dim) of {sizes.rope}: only {ROPE_WIDTH} is supported"
    if pair not in PREFILL_WIDTHS:
        shown = " and ".join(f"{key}/{value}" for key, value in PREFILL_WIDTHS)
        return f"keys of {sizes.nope} + {sizes.rope} elements and values of {sizes.value}: only {shown} are supported"
    if heads > HEADS[-1]:
        return f"{heads} query heads per rank: at most {HEADS[-1]} are supported"
    return None
