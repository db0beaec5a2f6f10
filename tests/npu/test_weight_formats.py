# SPDX-License-Identifier: Apache-2.0
"""Which formats of weights are served, from ``quantization_config`` entries as published checkpoints have them."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_ascend_patch.core.model_support import Parallelism, problems
from vllm_ascend_patch.core.model_traits import traits_of
from vllm_ascend_patch.core.weight_formats import method_problem

MODEL: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
EXPERTS = r"re:.*mlp\.experts.*"
_INT = {"type": "int", "symmetric": True, "observer": "minmax", "observer_kwargs": {}, "block_structure": None}
INT8_CHANNEL = {**_INT, "num_bits": 8, "strategy": "channel", "dynamic": False, "group_size": None, "actorder": None}
INT8_TENSOR = {**INT8_CHANNEL, "strategy": "tensor"}
INT8_TOKEN = {**_INT, "num_bits": 8, "strategy": "token", "dynamic": True, "observer": None}
INT8_STATIC = {**INT8_TOKEN, "strategy": "tensor", "dynamic": False}
INT4_GROUP = {**INT8_CHANNEL, "num_bits": 4, "strategy": "group", "group_size": 128}
INT4_CHANNEL = {**INT8_CHANNEL, "num_bits": 4}
FP8_CHANNEL = {**INT8_CHANNEL, "type": "float"}
FP8_TOKEN = {**INT8_TOKEN, "type": "float"}
FP8_BLOCK = {**FP8_CHANNEL, "strategy": "block", "block_structure": [128, 128]}
NVFP4 = {**_INT, "type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "dynamic": False}
MXFP4 = {**NVFP4, "strategy": "group", "group_size": 32}


def compressed(weights: Any, inputs: Any, stored: str, targets: tuple[str, ...] = ("Linear",), **own: Any) -> Any:
    group = {"targets": list(targets), "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ["lm_head", r"re:.*mlp.gate$"],
        "config_groups": {"group_0": group},
    } | own


def problems_of(quantization: Any, **changes: Any) -> list[str]:
    return problems(traits_of("m", {**MODEL, **changes, "quantization_config": quantization}))


ATTENTION, SHARED = r"re:.*self_attn.*", r"re:.*shared_experts.*"
SERVED: dict[str, Any] = {
    "Kimi-K2-Thinking": compressed(
        {**INT4_GROUP, "group_size": 32},
        None,
        "pack-quantized",
        ignore=["lm_head", ATTENTION, SHARED, r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
    ),
    "only attention, by its class, which vLLM leaves out": compressed(None, INT8_TOKEN, "int-quantized"),
    "W4A16": compressed(INT4_GROUP, None, "pack-quantized"),
    "W4A16, weights ordered": compressed({**INT4_GROUP, "actorder": "weight"}, None, "pack-quantized"),
    "W4A16 per channel": compressed({**INT4_GROUP, "strategy": "channel", "group_size": -1}, None, "pack-quantized"),
    "W4A8 experts": compressed(INT4_CHANNEL, INT8_TOKEN, "int-quantized", ignore=["lm_head", ATTENTION, SHARED]),
    "W4A8 experts beside W8A8": compressed(INT8_CHANNEL, INT8_TOKEN, "int-quantized")
    | {
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": INT8_CHANNEL, "input_activations": INT8_STATIC},
            "group_1": {"targets": [EXPERTS], "weights": INT4_CHANNEL, "input_activations": INT8_TOKEN},
        }
    },
    "W8A8 dynamic": compressed(INT8_CHANNEL, INT8_TOKEN, "int-quantized"),
    "W8A8 without a status": compressed(INT8_CHANNEL, INT8_TOKEN, "naive-quantized"),
    "W8A8 static, experts left out": compressed(
        INT8_CHANNEL, INT8_STATIC, "int-quantized", ignore=["lm_head", EXPERTS]
    ),
    "W8A8 static, experts left out by name": compressed(
        INT8_TENSOR, INT8_STATIC, "int-quantized", ignore=["lm_head", "model.layers.47.mlp.experts.0.gate_proj"]
    ),
    "W8A8 static, experts of a group of their own": compressed(INT8_CHANNEL, INT8_STATIC, "int-quantized")
    | {
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": INT8_CHANNEL, "input_activations": INT8_STATIC},
            "group_1": {"targets": [EXPERTS], "weights": INT8_CHANNEL, "input_activations": INT8_TOKEN},
        }
    },
}
INT8 = "compressed-tensors in W8A8 (int8 weights per channel"
REFUSED: dict[str, tuple[Any, str]] = {
    "AWQ": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
        "weights in AWQ's layout (quantisation 'awq')",
    ),
    "GPTQ": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
        "weights in GPTQ's layout (quantisation 'gptq')",
    ),
    "GPTQModel": (
        {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq", "pack_dtype": "int32", "meta": {}},
        "weights in GPTQ's layout",
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "weights in bitsandbytes' format",
    ),
    "GGUF": ({"quant_method": "gguf"}, "weights in GGUF"),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {}}, "weights in ModelOpt's"),
    "Quark": ({"quant_method": "quark", "layer_quant_config": {}, "global_quant_config": {}}, "weights in Quark's"),
    "AutoRound": (
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128},
        "weights in AutoRound's format (quantisation 'auto-round')",
    ),
    "torchao": ({"quant_method": "torchao", "quant_type": {}}, "weights in torchao's"),
    "FBGEMM": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weights in FBGEMM's fp8"),
    "HQQ": ({"quant_method": "hqq", "quant_config": {}}, "weights quantised by 'hqq'"),
    "BitNet": ({"quant_method": "bitnet", "linear_class": "autobitlinear"}, "weights quantised by 'bitnet'"),
    "unnamed": ({"bits": 4}, "weights quantised by 'an unnamed method'"),
    "fp8 in blocks": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
        "fp8 weights, in blocks",
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8 weights, in blocks with a scale each or not"),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "mxfp4 weights"),
    "W8A16": (
        compressed({**INT8_CHANNEL}, None, "pack-quantized"),
        "group_0 of compressed-tensors has weights (int8, per channel; pack-quantized) and activations as they are",
    ),
    "W4A16 in groups of 16": (
        compressed({**INT4_GROUP, "group_size": 16}, None, "pack-quantized"),
        "weights (int4, groups of 16; pack-quantized) and activations as they are, not supported",
    ),
    "W4A16, not packed": (
        compressed(INT4_GROUP, None, "int-quantized"),
        "weights (int4, groups of 128; int-quantized) and activations as they are, not supported",
    ),
    "W4A16, inputs ordered": (
        compressed({**INT4_GROUP, "actorder": "group"}, None, "pack-quantized"),
        "weights (int4, groups of 128, ordered by group; pack-quantized)",
    ),
    "W4A16, asymmetric": (
        compressed({**INT4_GROUP, "symmetric": False}, None, "pack-quantized"),
        "weights (int4, groups of 128, asymmetric; pack-quantized)",
    ),
    "W4A8 of all linear layers": (
        compressed(INT4_CHANNEL, INT8_TOKEN, "int-quantized"),
        "linear layers with weights (int4, per channel; int-quantized) and dynamic activations (int8, per token) (group_0",
    ),
    "W4A8, asymmetric activations": (
        compressed(INT4_CHANNEL, {**INT8_TOKEN, "symmetric": False}, "int-quantized", ignore=["lm_head", ATTENTION]),
        "dynamic activations (int8, per token, asymmetric), not supported",
    ),
    "W4A8, packed": (
        compressed(INT4_CHANNEL, INT8_TOKEN, "pack-quantized", ignore=["lm_head", ATTENTION]),
        "weights (int4, per channel; pack-quantized) and dynamic activations (int8, per token), not supported",
    ),
    "W4A8 in groups": (
        compressed(INT4_GROUP, INT8_TOKEN, "int-quantized"),
        "weights (int4, groups of 128; int-quantized) and dynamic activations (int8, per token), not supported",
    ),
    "FP8 dynamic": (
        compressed(FP8_CHANNEL, FP8_TOKEN, "float-quantized"),
        "weights (float8, per channel; float-quantized) and dynamic activations (float8, per token), not supported",
    ),
    "FP8 in blocks": (
        compressed(FP8_BLOCK, {**FP8_TOKEN, "strategy": "group", "group_size": 128}, "float-quantized"),
        "weights (float8, per block; float-quantized) and dynamic activations (float8, groups of 128)",
    ),
    "NVFP4": (compressed(NVFP4, {**NVFP4, "dynamic": "local"}, "nvfp4-pack-quantized"), "(float4, groups of 16; nvfp4"),
    "NVFP4A16": (
        compressed(NVFP4, None, "nvfp4-pack-quantized"),
        "weights (float4, groups of 16; nvfp4-pack-quantized)",
    ),
    "MXFP4A16": (
        compressed(MXFP4, None, "mxfp4-pack-quantized"),
        "weights (float4, groups of 32; mxfp4-pack-quantized)",
    ),
    "W8A8, asymmetric activations": (
        compressed(INT8_CHANNEL, {**INT8_TOKEN, "symmetric": False}, "int-quantized"),
        "dynamic activations (int8, per token, asymmetric), not supported",
    ),
    "W8A8, outputs as well": (
        compressed(INT8_CHANNEL, INT8_TOKEN, "int-quantized")
        | {
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": INT8_CHANNEL,
                    "input_activations": INT8_STATIC,
                    "output_activations": INT8_STATIC,
                }
            }
        },
        "weights (int8, per channel; int-quantized) and static activations (int8, per tensor), not supported",
    ),
    "W8A8 static experts": (
        compressed(INT8_CHANNEL, INT8_STATIC, "int-quantized"),
        "experts with weights (int8, per channel; int-quantized) and static activations (int8, per tensor) (group_0 of",
    ),
    "W8A8 experts per tensor": (
        compressed(INT8_TENSOR, INT8_TOKEN, "int-quantized"),
        "experts with weights (int8, per tensor; int-quantized) and dynamic activations (int8, per token) (group_0 of",
    ),
    "two groups, one of them fp8": (
        compressed(INT8_CHANNEL, INT8_TOKEN, "mixed-precision")
        | {
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": INT8_CHANNEL,
                    "input_activations": INT8_TOKEN,
                    "format": "int-quantized",
                },
                "group_1": {
                    "targets": [r"re:.*self_attn.*"],
                    "weights": FP8_CHANNEL,
                    "input_activations": FP8_TOKEN,
                    "format": "float-quantized",
                },
            }
        },
        "group_1 of compressed-tensors has weights (float8, per channel; float-quantized)",
    ),
    "a quantised cache": (
        compressed(
            INT8_CHANNEL,
            INT8_TOKEN,
            "int-quantized",
            kv_cache_scheme={"type": "float", "num_bits": 8, "strategy": "tensor"},
        ),
        "with a quantised KV cache (kv_cache_scheme: float8, per tensor) is not supported",
    ),
    "transforms": (
        compressed(INT8_CHANNEL, INT8_TOKEN, "int-quantized", transform_config={"config_groups": {"u": {}}}),
        "with transforms of weights and activations (transform_config) is not supported",
    ),
    "sparse": (
        compressed(INT8_CHANNEL, INT8_TOKEN, "int-quantized", sparsity_config={"format": "sparse-24-bitmask"}),
        "with sparse weights (sparsity_config: sparse-24-bitmask) is not supported",
    ),
}


@pytest.mark.parametrize("case", SERVED)
def test_served(case: str) -> None:
    assert problems_of(SERVED[case]) == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_served_names_the_format_and_the_way_out(case: str) -> None:
    quantization, found = REFUSED[case]
    (problem,) = problems_of(quantization)
    assert problem.startswith("m: ")
    assert found in problem
    assert "supported on Ascend NPUs by this port: " in problem
    assert problem.endswith(".")
    assert "\n" not in problem
    assert any(way in problem for way in ("Take ", "Leave the experts out of that group"))


def test_a_quantisation_by_option_is_refused_by_its_name() -> None:
    assert method_problem("m", "compressed-tensors") is method_problem("m", "ascend") is None
    for method in ("experts_int8", "fp8_per_block", "bitsandbytes", "int8_per_channel_weight_only"):
        assert f"{method!r}" in str(method_problem("m", method))


def test_a_model_without_experts_has_no_experts_to_refuse() -> None:
    assert problems_of(REFUSED["W8A8 static experts"][0], num_experts=0) == []


def test_ranks_that_would_share_a_group_of_int4_weights_are_refused() -> None:
    int4 = {**MODEL, "quantization_config": SERVED["W4A16"]}
    assert problems(traits_of("m", int4), Parallelism(tp_size=2)) == []
    assert problems(traits_of("m", int4), Parallelism(tp_size=4, dp_size=2, expert_parallel=True)) == []
    (problem,) = problems(traits_of("m", int4), Parallelism(tp_size=4))
    assert problem == (
        "4 ranks (tensor x data parallel) give each 192 of the 768 inputs of the experts' down projection of m, whose int4 "
        "weights have a scale for 128 inputs each: only whole groups are supported. Add --enable-expert-parallel, or take "
        "fewer ranks."
    )


def test_tensor_parallel_ranks_that_would_share_a_group_of_attention_are_refused() -> None:
    int4 = {**MODEL, "num_attention_heads": 12, "head_dim": 64, "quantization_config": SERVED["W4A16"]}
    assert problems(traits_of("m", int4), Parallelism(tp_size=2, expert_parallel=True)) == []
    (problem,) = problems(traits_of("m", int4), Parallelism(tp_size=4, expert_parallel=True))
    assert problem == (
        "--tensor-parallel-size 4 gives each rank 192 of the 768 inputs of attention's output projection of m, whose int4 "
        "weights have a scale for 128 inputs each: only whole groups are supported. Take fewer tensor parallel ranks, and "
        "data parallel ones instead."
    )
    kept = compressed(INT4_GROUP, None, "pack-quantized", ignore=["lm_head", ATTENTION])
    assert (
        problems(traits_of("m", {**int4, "quantization_config": kept}), Parallelism(tp_size=4, expert_parallel=True))
        == []
    )


def test_the_older_name_of_the_entry_is_read_as_well() -> None:
    fp8 = REFUSED["FP8 dynamic"][0]
    (problem,) = problems(traits_of("m", {**MODEL, "compression_config": fp8}))
    assert "weights (float8, per channel; float-quantized)" in problem
