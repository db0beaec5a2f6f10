# SPDX-License-Identifier: Apache-2.0
"""Script: makes vLLM's configuration for many models and options in one process and reports what each ended in: the error,
or what the platform made of it. No weights, no engine. Takes a folder to write configurations into."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AriaConfig,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    JambaConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
)
from vllm.engine.arg_utils import EngineArgs

from tests.support.processes import report
from vllm_ascend_patch.releases import guard, runner

_SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
}
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 48}

_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}

_INT4 = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
_FORMATS: dict[str, dict[str, Any]] = {
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**_INT4, "symmetric": True}}},
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "unknown to vLLM": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
    "w4a8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
            }
        },
    },
    "asymmetric int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": _INT4, "input_activations": None}},
    },
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "truncate": False}

MODELS: dict[str, tuple[str, PretrainedConfig]] = {
    "mixtral": ("MixtralForCausalLM", MixtralConfig(**_SIZES, **_EXPERTS, head_dim=32)),
    "wide": ("MixtralForCausalLM", MixtralConfig(**{**_SIZES, "hidden_size": 1024}, **_EXPERTS, head_dim=32)),
    "window": ("MixtralForCausalLM", MixtralConfig(**_SIZES, **_EXPERTS, head_dim=32, sliding_window=256)),
    "head size 24": ("MixtralForCausalLM", MixtralConfig(**_SIZES, **_EXPERTS, head_dim=24)),
    "gpt-oss": ("GptOssForCausalLM", GptOssConfig(**_SIZES, **_EXPERTS, head_dim=64, rope_scaling=_YARN)),
    "hybrid": ("JambaForCausalLM", JambaConfig(**_SIZES, num_experts=8, attn_layer_period=2, attn_layer_offset=1)),
    "latent": ("DeepseekV3ForCausalLM", DeepseekV3Config(**_SIZES, **_ROUTED, **{**_LATENT, "kv_lora_rank": 256})),
    "latent served": ("DeepseekV3ForCausalLM", DeepseekV3Config(**_SIZES, **_ROUTED, **_LATENT)),
    "latent heads": (
        "DeepseekV3ForCausalLM",
        DeepseekV3Config(**{**_SIZES, "num_attention_heads": 256, "num_key_value_heads": 256}, **_ROUTED, **_LATENT),
    ),
    "latent sparse": (
        "DeepseekV32ForCausalLM",
        DeepseekV3Config(**_SIZES, **_ROUTED, **_LATENT, index_topk=2048, index_n_heads=64, index_head_dim=128),
    ),
    "latent fp8": (
        "DeepseekV3ForCausalLM",
        DeepseekV3Config(**_SIZES, **_ROUTED, **_LATENT, quantization_config=_FP8),
    ),
    "images": (
        "AriaForConditionalGeneration",  # of the few whose classes do not import torchvision
        AriaConfig(
            text_config={**_SIZES, "hidden_size": 96, "model_type": "aria_text", "moe_num_experts": 8, "moe_topk": 2},
            vision_config={"model_type": "idefics3_vision", "hidden_size": 32, "num_attention_heads": 2},
        ),
    ),
    "clip": ("OlmoeForCausalLM", OlmoeConfig(**_SIZES, clip_qkv=8.0)),
    "mxfp4": ("GptOssForCausalLM", GptOssConfig(**_SIZES, **_EXPERTS, quantization_config={"quant_method": "mxfp4"})),
    "mxfp4 of another model": (
        "MixtralForCausalLM",
        MixtralConfig(**_SIZES, **_EXPERTS, head_dim=32, quantization_config={"quant_method": "mxfp4"}),
    ),
    "int8": (
        "MixtralForCausalLM",
        MixtralConfig(**_SIZES, **_EXPERTS, head_dim=32, quantization_config=_W8A8),
    ),
    "scaled": ("Glm4MoeForCausalLM", Glm4MoeConfig(**_SIZES, **_ROUTED, head_dim=32, routed_scaling_factor=1.5)),
    **{
        name: (
            "MixtralForCausalLM",
            MixtralConfig(**_SIZES, **_EXPERTS, head_dim=32, quantization_config=_FORMATS[name]),
        )
        for name in _FORMATS
    },
}
# Folders with a ModelSlim description beside the configuration: the types of one layer's tensors.
_LAYER = "model.layers.0"
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "modelslim": {f"{_LAYER}.self_attn.o_proj.weight": "FLOAT"},
    "modelslim without a scale": {f"{_LAYER}.mlp.experts.0.up_proj.weight": "W8A8_DYNAMIC"},
    "modelslim int4": {f"{_LAYER}.mlp.experts.0.up_proj.weight": "W4A8_DYNAMIC"},
    "modelslim of another type": {f"{_LAYER}.self_attn.o_proj.weight": "W4A4_DYNAMIC"},
}
WINDOW_OF_ALL = {"hf_overrides": {"sliding_window": 512}}
RANKS = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
WIDE_STEP = {**RANKS, "model": "wide", "max_num_batched_tokens": 256, "max_num_seqs": 256}
DP = {"data_parallel_size": 2, "enable_expert_parallel": True, "max_num_batched_tokens": None}

CASES: dict[str, dict[str, Any]] = {
    "served": {},
    "window": {"model": "window"},
    # another dtype, since what was asked of the operators once is kept
    "window with CANN 8.5": {"model": "window", "dtype": "bfloat16", "environment": {"VIRTUAL_NPU_CANN": "8.5"}},
    "window, many requests": {"model": "window", "max_num_seqs": 4097, "max_num_batched_tokens": 8192},
    "short requests": {"model": "window", "max_model_len": 256},
    "window of all": {"model": "window", "max_model_len": 512, **WINDOW_OF_ALL},
    "head size 24": {"model": "head size 24"},
    "sinks in float16": {"model": "gpt-oss"},
    "hybrid": {"model": "hybrid"},
    "latent": {"model": "latent"},
    "latent served": {"model": "latent served"},
    "latent heads": {"model": "latent heads"},
    "latent sparse": {"model": "latent sparse"},
    "latent fp8": {"model": "latent fp8", "dtype": "bfloat16"},
    "latent float32": {"model": "latent served", "dtype": "float32"},
    "latent block": {"model": "latent served", "block_size": 192},
    "latent layout": {"model": "latent served", "environment": {"VLLM_KV_CACHE_LAYOUT": "BLHNC"}},
    "latent requests": {"model": "latent served", "max_num_seqs": 4097, "max_num_batched_tokens": 8192},
    "latent blocks": {"model": "latent served", "num_gpu_blocks_override": 32768},
    "latent connector": {
        "model": "latent served",
        "kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"},
    },
    "latent prefill": {"model": "latent served", "attention_config": {"mla_prefill_backend": "FLASH_ATTN"}},
    "latent drafts": {
        "model": "latent served",
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 16, "prompt_lookup_max": 2},
    },
    "plain": {"model": "latent", "environment": {"VLLM_MLA_DISABLE": "1"}},
    "scaled in float16": {"model": "scaled"},
    "scaled in bfloat16": {"model": "scaled", "dtype": "bfloat16"},
    "images": {"model": "images"},
    "text beside images": {"model": "images", "limit_mm_per_prompt": {"image": 0}},
    "clip": {"model": "clip"},
    "mxfp4": {"model": "mxfp4", "dtype": "bfloat16"},
    "mxfp4 with load balancing": {
        "model": "mxfp4",
        "dtype": "bfloat16",
        **DP,
        "additional_config": {"eplb_config": {}},
    },
    "mxfp4 of another model": {"model": "mxfp4 of another model", "dtype": "bfloat16"},
    **{name: {"model": name} for name in _FORMATS if name != "int4"},
    "fp8 by option": {"quantization": "fp8"},
    "int4": {"model": "int4"},
    "w4a8 with load balancing": {"model": "w4a8", **DP, "additional_config": {"eplb_config": {}}},
    "int4 with load balancing": {"model": "int4", **DP, "additional_config": {"eplb_config": {}}},
    "connector": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "lora": {"enable_lora": True},
    "offload": {"cpu_offload_gb": 1},
    "offload by layers": {"offload_backend": "prefetch", "offload_group_size": 2},
    "routed experts": {"enable_return_routed_experts": True},
    "fault tolerance": {**DP, "enable_fault_tolerance": True, "data_parallel_rank": 0},
    "batch invariant": {"environment": {"VLLM_BATCH_INVARIANT": "1"}},
    "attention backend": {"attention_backend": "FLASH_ATTN"},
    "tp 3": {"tensor_parallel_size": 3},
    "deepep": {**DP, "all2all_backend": "deepep_low_latency"},
    "deepep with a budget": {**DP, "all2all_backend": "deepep_low_latency", "max_num_batched_tokens": 256},
    "moe backend": {**RANKS, "moe_backend": "triton"},
    "modelslim": {"model": "modelslim"},
    "modelslim by option": {"model": "modelslim", "quantization": "ascend"},
    "modelslim of another type": {"model": "modelslim of another type"},
    "modelslim without a scale": {"model": "modelslim without a scale"},
    "modelslim int4 balanced": {
        **DP,
        "model": "modelslim int4",
        "load_format": "dummy",
        "additional_config": {"eplb_config": {"num_redundant_experts": 2}},
    },
    "no modelslim": {"quantization": "ascend"},
    "int8": {"model": "int8", "load_format": "dummy"},
    "int8 without a scale": {"model": "int8"},
    "small window": {**WIDE_STEP, "environment": {"HCCL_BUFFSIZE": "4"}},
}
ON_RUNNER_V2: dict[str, dict[str, Any]] = {
    "v2": {},
    "v2 drafts": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
    "v2 blocks of drafts": {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 2,
            "prompt_lookup_max": 3,
            "rejection_sample_method": "block",
        }
    },
    "v2 fault tolerance": {**DP, "enable_fault_tolerance": True, "data_parallel_rank": 0},
    "v2 stages": {"pipeline_parallel_size": 2},
    "v2 launcher": {"distributed_executor_backend": "external_launcher"},
    "v2 sharded sampling": {"tensor_parallel_size": 2, "enable_batch_sharded_sampling": True},
    "v2 prompts": {"enable_prompt_embeds": True},
    "v2 noise": {"use_fp64_gumbel": True},
    "v2 transfer": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "v2 reasoning": {"reasoning_config": {"reasoning_start_str": "<a>", "reasoning_end_str": "<b>"}},
    "v2 nans": {"environment": {"VLLM_COMPUTE_NANS_IN_LOGITS": "1"}},
    "v2 breakable graphs": {"environment": {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}},
}
if runner.v2_obstacle(guard.installed_release()) is None:
    for name, case in ON_RUNNER_V2.items():
        CASES[name] = {**case, "environment": {runner.VARIABLE: "1", **case.get("environment", {})}}


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """With ``variables``; afterwards as before, since upstream sets some of its own for some models."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def outcome(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """``error`` with its type, the resolved settings that some case changes, or ``absent``: options that the release has
    not."""
    options = {"model": "mixtral", "dtype": "float16", "max_model_len": 512, "max_num_batched_tokens": 128, **case}
    options = {"max_num_seqs": 8, "enforce_eager": True, "skip_tokenizer_init": True, **options}
    variables = options.pop("environment", {})
    absent = sorted(options.keys() - {field.name for field in fields(EngineArgs)})
    if absent:
        return {"absent": absent}
    options["model"] = str(folder / options["model"])
    with environment(variables):
        try:
            config = EngineArgs(**options).create_engine_config()
        except Exception as error:
            return {"type": type(error).__name__, "error": str(error)}
    return {
        "all2all": getattr(config.parallel_config, "all2all_backend", "allgather_reducescatter"),
        "experts": getattr(getattr(config, "kernel_config", None), "moe_backend", "auto"),
        "tokens": config.scheduler_config.max_num_batched_tokens,
        "window": config.model_config.get_sliding_window(),
        "quantization": config.model_config.quantization,
        "cache window": config.cache_config.sliding_window,
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name, (architecture, model) in MODELS.items():
        model.architectures = [architecture]
        model.save_pretrained(place / name)
    for name, types in DESCRIPTIONS.items():
        MODELS["mixtral"][1].save_pretrained(place / name)
        (place / name / "quant_model_description.json").write_text(json.dumps({"version": "1.0.0", **types}))
        save_file({key: torch.zeros(2, 2, dtype=torch.int8) for key in types}, place / name / "weights.safetensors")
    weight = torch.zeros(2, 2, dtype=torch.int8)
    save_file({f"{_LAYER}.self_attn.o_proj.weight": weight}, place / "int8" / "model.safetensors")
    report({name: outcome(place, case) for name, case in CASES.items()})
