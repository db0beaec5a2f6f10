# SPDX-License-Identifier: Apache-2.0
"""What of a device's memory a model's weights take on one rank, and how many tokens its KV cache holds in the rest.

Estimates from a ``config.json``: weights by the shapes of their layers, without norms and biases; no activations, no
buffers of collectives, no graphs. No torch, no device, no vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .latent_support import LatentSizes
from .model_traits import ModelTraits
from .moe.model_facts import ModelFacts
from .operator_limits import INT32_MAX, latent_key_elements

ELEMENT = 2
"""Bytes of an element of activations, of the cache and of weights that are not quantised."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of one rank.

    Attributes:
        weights: bytes of all weights; experts, and what is int8 or int4 with them, at their size.
        cache_per_token: bytes of a token in the KV cache, all layers.
        plain_cache_per_token: the same of latent attention computed plainly (``VLLM_MLA_DISABLE=1``), None for other models.
        available: bytes that a rank may take of its device.
        tokens: that the KV cache holds in what weights leave; 0 where they do not fit.
    """

    weights: int
    cache_per_token: int
    plain_cache_per_token: int | None
    available: int
    tokens: int


def memory_plan(
    config: Mapping[str, Any], traits: ModelTraits, facts: ModelFacts, tp: int, expert_share: float, available: int
) -> MemoryPlan | None:
    """The plan of a rank of ``tp`` that holds ``expert_share`` experts of each layer; None where the configuration lacks
    sizes of attention."""
    text = {**config, **(config.get("text_config") or {})}
    layers = text.get("num_hidden_layers") or 0
    if not (traits.num_heads and traits.head_size and layers):
        return None
    heads = -(-traits.num_heads // tp)
    kv_heads = max(traits.num_kv_heads // tp, 1)
    linear = _bytes_of_a_weight(traits, facts)
    sizes = traits.latent_sizes
    if sizes is None:
        attention = int(traits.head_size * facts.hidden_size * 2 * (heads + kv_heads) * linear)
        per_token = 2 * kv_heads * traits.head_size
    else:
        attention = _latent_weights(text, sizes, facts.hidden_size, heads, linear)
        # Values are padded to the width of keys.
        per_token = 2 * heads * (sizes.nope + sizes.rope)
    plain = per_token * layers * ELEMENT if traits.latent else None
    if traits.latent and sizes is not None:
        per_token = sizes.rank + sizes.rope
    cache = per_token * layers * ELEMENT
    weights = (
        attention * layers
        + int(expert_share * facts.expert_bytes) * facts.moe_layers
        + _other_weights(text, facts, layers, linear) // tp
    )
    tokens = max(available - weights, 0) // cache
    return MemoryPlan(
        weights=weights,
        cache_per_token=cache,
        plain_cache_per_token=plain,
        available=available,
        tokens=min(tokens, _indexed(traits, kv_heads)),
    )


def _bytes_of_a_weight(traits: ModelTraits, facts: ModelFacts) -> float:
    """Of linear layers, with the scales of groups."""
    weights = traits.weights
    attention = None if weights is None else weights.attention
    if attention is None and weights is not None and weights.experts is not None and weights.experts.w4a8:
        return ELEMENT  # experts alone are in that format
    if attention is None or not attention.w4a16:
        return 1 if facts.quantized else ELEMENT
    size = attention.weights.group_size
    return 0.5 + (ELEMENT / size if size else 0)


def _latent_weights(text: Mapping[str, Any], sizes: LatentSizes, hidden: int, heads: int, linear: float) -> int:
    """Bytes of one layer on one rank: down-projections are on every rank; the up-projection of latents is never int8."""
    query = heads * (sizes.nope + sizes.rope)
    rank = text.get("q_lora_rank") or 0
    queries = rank * (hidden + query) if rank else hidden * query
    down = hidden * (sizes.rank + sizes.rope)
    up = sizes.rank * heads * (sizes.nope + sizes.value)
    return int((queries + down + heads * sizes.value * hidden) * linear) + up * ELEMENT


def _other_weights(text: Mapping[str, Any], facts: ModelFacts, layers: int, linear: float) -> int:
    """Bytes of what tensor parallel ranks share: dense MLPs, shared experts, embeddings; and of the routers, though whole on
    every rank."""
    dense = (layers - facts.moe_layers) * 3 * facts.hidden_size * (text.get("intermediate_size") or 0)
    shared = text.get("shared_expert_intermediate_size") or (
        (text.get("n_shared_experts") or 0) * facts.intermediate_size
    )
    tables = 1 if text.get("tie_word_embeddings") else 2
    embeddings = tables * (text.get("vocab_size") or 0) * facts.hidden_size
    routers = facts.moe_layers * facts.num_experts * facts.hidden_size
    return int((dense + facts.moe_layers * 3 * facts.hidden_size * shared) * linear) + (embeddings + routers) * ELEMENT


def _indexed(traits: ModelTraits, kv_heads: int) -> int:
    """Tokens of a layer that attention can index (``operator_limits.py``)."""
    return INT32_MAX // (latent_key_elements(1) if traits.latent else 2 * kv_heads * traits.head_size)
