# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, what model runner V1 serves here and V2 does not yet.

Whether V2 was asked for is upstream's answer (``VllmConfig.use_v2_model_runner``); on which releases it may be is
``releases/runner.py``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_patch.releases.runner import VARIABLE
from vllm_ascend_patch.seams.config import uses_runner_v2

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_runner(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for the first thing that model runner V2 would be asked for and does not do here."""
    if not uses_runner_v2(vllm_config):
        return
    for what, found in _not_served(vllm_config).items():
        if found:
            raise ValueError(
                f"{what} is not served on Ascend NPUs by model runner V2 yet. Leave it out, or start without "
                f"{VARIABLE}=1: model runner V1 serves then."
            )


def _not_served(vllm_config: VllmConfig) -> dict[str, Any]:
    import vllm.envs as envs

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return {
        **_not_served_of_drafts(vllm_config.speculative_config),
        "pipeline parallelism (--pipeline-parallel-size)": parallel.pipeline_parallel_size > 1,
        "an external launcher (--distributed-executor-backend external_launcher)": (
            parallel.distributed_executor_backend == "external_launcher"
        ),
        "batch-sharded sampling (--enable-batch-sharded-sampling)": getattr(
            parallel, "enable_batch_sharded_sampling", False
        ),
        "transfer of KV caches (--kv-transfer-config)": vllm_config.kv_transfer_config,
        "transfer of encoder outputs (--ec-transfer-config)": getattr(vllm_config, "ec_transfer_config", None),
        "a reasoning parser (--reasoning-parser, --reasoning-config: its budget of thinking tokens)": getattr(
            vllm_config, "reasoning_config", None
        ),
        "watermarking": getattr(vllm_config, "watermark_config", None),
        "HiSparse attention": getattr(getattr(vllm_config, "attention_config", None), "hisparse_config", None),
        "VLLM_COMPUTE_NANS_IN_LOGITS": getattr(envs, "VLLM_COMPUTE_NANS_IN_LOGITS", False),
        "VLLM_USE_BREAKABLE_CUDAGRAPH": getattr(envs, "VLLM_USE_BREAKABLE_CUDAGRAPH", False),
        **({} if model is None else _not_served_of_model(model)),
    }


def _not_served_of_drafts(speculative: Any) -> dict[str, Any]:
    if speculative is None:
        return {}
    several = getattr(speculative, "use_multi_module_mtp", None)
    return {
        f"speculative method {speculative.method!r}": speculative.method not in ("ngram", "mtp"),
        "a drafter of several prediction layers": several is not None and several(),
        "another way of rejecting drafts than the standard one (rejection_sample_method in --speculative-config)": (
            speculative.rejection_sample_method != "standard"
        ),
        "adaptive verification of drafts": getattr(speculative, "enable_adaptive_verification", False),
    }


def _not_served_of_model(model: Any) -> dict[str, Any]:
    return {
        "multimodal input (--language-model-only leaves it out)": model.supports_multimodal_inputs,
        "prompts of embeddings (--enable-prompt-embeds)": model.enable_prompt_embeds,
        "64-bit noise (--use-fp64-gumbel)": getattr(model, "use_fp64_gumbel", False),
        "replay of traces (--enable-trace-replay)": getattr(model, "enable_trace_replay", False),
        "returned sampling masks (--return-sampling-mask)": getattr(model, "return_sampling_mask", False),
    }
