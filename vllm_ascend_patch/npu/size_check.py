# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, a deployment whose sizes the operators would not take.

Reads the sizes out of vLLM's configuration, once its defaults are filled in; the limits are ``core/operator_limits.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.model_facts import ModelFacts, has_experts
from vllm_ascend_patch.core.operator_limits import Deployment, violations
from vllm_ascend_patch.npu.attention.interface import AttentionBackend
from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE
from vllm_ascend_patch.seams.config import int8_experts
from vllm_ascend_patch.seams.moe.facts import redundant_experts

from .attention_check import needs_tnd
from .config_check import model_traits

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_CUTS_BLOCKS = "get_supported_kernel_block_sizes"  # which upstream asks a backend in releases that cut KV blocks for it


def check_sizes(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for the first operator limit that this deployment could meet while it serves."""
    if vllm_config.model_config is None or vllm_config.cache_config is None:
        return
    problem = next(violations(deployment_of(vllm_config)), None)
    if problem is not None:
        raise ValueError(f"{problem}.")


def deployment_of(vllm_config: VllmConfig) -> Deployment:
    """The sizes of one rank."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    fitted = getattr(model, "original_max_model_len", None) == -1  # --max-model-len auto
    return Deployment(
        heads=model.get_num_attention_heads(parallel),
        kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        block_size=cache.block_size,
        kernel_block=BLOCK_SIZE if hasattr(AttentionBackend, _CUTS_BLOCKS) else cache.block_size,
        max_model_len=None if fitted else model.max_model_len,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        num_blocks=cache.num_gpu_blocks_override,
        attention_chunk=_attention_chunk(model.hf_text_config),
        latent=bool(getattr(model, "use_mla", False)),
        tnd_only=needs_tnd(model_traits(vllm_config)),
        **_expert_sizes(vllm_config),
    )


def _attention_chunk(config: Any) -> int | None:
    """Llama 4: layers with rotary embedding stay within chunks."""
    chunk = getattr(config, "attention_chunk_size", None)
    return chunk if chunk and any(getattr(config, "no_rope_layers", None) or ()) else None


def _expert_sizes(vllm_config: VllmConfig) -> dict[str, Any]:
    """Nothing for a model without experts, or with a configuration that does not tell: the workers' checks remain."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    config = model.hf_config.to_dict()
    if not has_experts(config):
        return {}
    try:
        facts = ModelFacts.from_config(model.model, config, int8_experts(vllm_config))
    except MoEConfigError:
        return {}
    tp = parallel.tensor_parallel_size
    distributed = parallel.enable_expert_parallel
    ranks = tp * parallel.data_parallel_size if distributed else 1
    experts = facts.num_experts + redundant_experts(parallel)
    sizes: dict[str, Any] = {
        "experts": experts,
        "local_experts": -(-experts // ranks),
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size // (1 if distributed else tp),
        "top_k": facts.top_k,
        "int4_experts": bool(getattr(vllm_config.quant_config, "int4_experts", False))
        or (facts.quantized and facts.int4),
    }
    if facts.quantized:
        sizes["int8_widths"] = _linear_widths(model, parallel, config)
    return sizes


def _linear_widths(model: Any, parallel: Any, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the fused projection of attention, of its output, and of dense layers' gate and up projection."""
    heads, kv_heads = model.get_num_attention_heads(parallel), model.get_num_kv_heads(parallel)
    text = {**config, **(config.get("text_config") or {})}
    dense = text.get("intermediate_size") or 0
    return (
        (heads + 2 * kv_heads) * model.get_head_size(),
        text["hidden_size"],
        2 * dense // parallel.tensor_parallel_size,
    )
