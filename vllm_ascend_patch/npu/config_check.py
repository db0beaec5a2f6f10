# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, a configuration that this port cannot serve.

Each refusal says what was found, what is supported and what to do. Only reads the configuration: filling in defaults is
``config_defaults.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch_npu

from vllm_ascend_patch.core.model_support import Parallelism, dtype_problem, problems
from vllm_ascend_patch.core.model_traits import LATENT_ALWAYS, ModelTraits, attends_throughout, traits_of

from .attention_check import check_attention_forms
from .compressed_check import check_compressed
from .flag_check import check_attention_backend, check_connectors, check_flags
from .latent_check import check_latent
from .media_check import check_media
from .operator_check import check_operators
from .runner_check import check_runner
from .states import check_states, hybrid_caches
from .weight_check import check_weights

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_SUPPORTED_DRAFTERS = ("ngram", "mtp", "eagle3")
_SUPPORTED_KV_CACHE_DTYPES = ("auto", "bfloat16", "float16")


class NotServable(RuntimeError):
    """A configuration that this port refuses, as the user meets it.

    Not a ``ValueError``: pydantic, under which vLLM checks configurations, would put lines of its own around the message.
    """


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ``ValueError`` unless the fused attention operator of torch_npu takes ``dtype``."""
    problem = dtype_problem(_name(dtype))
    if problem is not None:
        raise ValueError(problem)


def check_config(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for the first thing in ``vllm_config`` that cannot be served."""
    check_flags(vllm_config)
    _check_parallel(vllm_config)
    check_runner(vllm_config)
    if vllm_config.model_config is not None:
        _check_model(vllm_config)
    check_attention_backend(vllm_config)
    if vllm_config.model_config is None:
        return
    check_media(vllm_config)
    check_compressed(vllm_config)
    _check_attention(vllm_config)
    _check_speculation(vllm_config)
    check_connectors(vllm_config)


def model_traits(vllm_config: VllmConfig) -> ModelTraits:
    """What of the model decides whether it is served: its configuration as vLLM read it, and vLLM's own answers."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    # transformers' defaults are in there, also of a text model inside a multimodal one.
    config = {**model.hf_config.to_dict(), **model.hf_text_config.to_dict(), "architectures": model.architectures}
    traits = traits_of(model.model, config)
    told_otherwise = hybrid_caches() and attends_throughout(config)
    keeps_state = model.is_attention_free or (model.is_hybrid and not told_otherwise)
    if not model.is_attention_free:
        traits = replace(
            traits,
            num_heads=model.get_num_attention_heads(parallel) * parallel.tensor_parallel_size,
            num_kv_heads=model.get_total_num_kv_heads(),
            head_size=model.get_head_size(),
        )
    return replace(
        traits,
        dtype=_name(model.dtype),
        max_model_len=model.max_model_len,
        vocab_size=model.get_vocab_size(),
        latent=bool(getattr(model, "use_mla", False)) or (traits.latent and traits.architecture in LATENT_ALWAYS),
        states=(traits.states or ("its class says so",)) if keeps_state else traits.states,
        encoder_decoder=bool(model.is_encoder_decoder),
        prefix_lm=bool(getattr(model, "is_mm_prefix_lm", False)),
    )


def _check_model(vllm_config: VllmConfig) -> None:
    traits, parallel = model_traits(vllm_config), vllm_config.parallel_config
    if traits.divides_shared_experts and not _runner_applies_factor():
        traits = replace(traits, routed_scale=1.0)
    layout = Parallelism(
        tp_size=parallel.tensor_parallel_size,
        dp_size=parallel.data_parallel_size,
        expert_parallel=parallel.enable_expert_parallel,
    )
    for problem in problems(traits, layout):
        raise ValueError(problem)  # the first is the one that no later one's remedy would mend
    check_latent(vllm_config, traits)
    check_states(vllm_config, traits)
    check_operators(vllm_config, traits)
    check_weights(vllm_config, traits)
    check_attention_forms(traits, parallel.tensor_parallel_size)


def _runner_applies_factor() -> bool:
    """Whether the installed vLLM applies ``routed_scaling_factor`` outside of model code; before, models did it, rightly."""
    try:
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    except ImportError:
        return False
    return hasattr(MoERunner, "_maybe_apply_routed_scale_to_output")


def _check_parallel(vllm_config: VllmConfig) -> None:
    parallel = vllm_config.parallel_config
    for name in ("prefill_context_parallel_size", "decode_context_parallel_size"):
        size = getattr(parallel, name, 1)
        if size > 1:
            raise ValueError(
                f"{name}={size} is not supported on Ascend NPUs by this port: attention and slot mapping are not "
                f"split over context-parallel ranks. Set it to 1."
            )
    if getattr(parallel, "enable_dbo", False):
        raise ValueError(
            "--enable-dbo is not supported on Ascend NPUs: upstream's micro-batching needs CUDA's SM control and the "
            "DeepEP or NIXL all2all backends. Start without it."
        )
    if getattr(parallel, "distributed_executor_backend", None) in ("ray", "external_launcher"):
        return  # those place ranks on devices themselves, possibly on other machines
    if getattr(parallel, "nnodes", 1) > 1:
        return
    # The process of one engine checks for itself: older releases show it no device but its own.
    engines = 1 if parallel.data_parallel_rank_local is not None else parallel.data_parallel_size_local or 1
    ranks = parallel.world_size * engines
    devices = torch_npu.npu.device_count()
    if ranks > devices:
        raise ValueError(
            f"{ranks} ranks on this machine (tensor parallel x pipeline parallel {parallel.world_size}, local data "
            f"parallel {engines}) need {ranks} NPUs, but torch_npu sees {devices}. Lower "
            "--tensor-parallel-size or --data-parallel-size, or check ASCEND_RT_VISIBLE_DEVICES."
        )


def _check_attention(vllm_config: VllmConfig) -> None:
    model = vllm_config.model_config
    cache = vllm_config.cache_config
    if cache is not None and cache.cache_dtype not in _SUPPORTED_KV_CACHE_DTYPES:
        raise ValueError(
            f"--kv-cache-dtype {cache.cache_dtype} is not supported on Ascend NPUs by this port; supported: "
            f"{', '.join(_SUPPORTED_KV_CACHE_DTYPES)}."
        )
    if model.runner_type != "generate":
        raise ValueError(
            f"runner type {model.runner_type!r} is not supported on Ascend NPUs by this port: only text generation is."
        )


def _check_speculation(vllm_config: VllmConfig) -> None:
    from .kernel_overrides import registry_exists

    speculative = vllm_config.speculative_config
    if speculative is None:
        return
    if not registry_exists():
        raise ValueError(
            "speculative decoding is not supported on Ascend NPUs with this vLLM release: its rejection sampler launches "
            "Triton kernels that a platform cannot replace before vLLM 0.31. Start without --speculative-config, or "
            "install vLLM 0.31 or newer."
        )
    if speculative.method not in _SUPPORTED_DRAFTERS:
        raise ValueError(
            f"speculative method {speculative.method!r} is not supported on Ascend NPUs by this port; supported: "
            f"{', '.join(_SUPPORTED_DRAFTERS)}."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
