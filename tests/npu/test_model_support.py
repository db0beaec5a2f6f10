# SPDX-License-Identifier: Apache-2.0
"""Which models are served, from configurations as the hub has them: a table, and what each message has to say."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.support.installed import vllm_file
from vllm_ascend_patch.core.latent_support import padded_heads
from vllm_ascend_patch.core.model_support import (
    Parallelism,
    cann_problem,
    heads_problem,
    latent_attention,
    latent_release_problem,
    mxfp4_release_problem,
    problems,
    state_release_problem,
)
from vllm_ascend_patch.core.model_traits import ModelTraits, attends_throughout, traits_of
from vllm_ascend_patch.releases.latent import first_release, latent_obstacle
from vllm_ascend_patch.releases.mxfp4 import mxfp4_obstacle
from vllm_ascend_patch.releases.states import states_obstacle

DENSE: dict[str, Any] = {
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
LATENT: dict[str, Any] = {
    **DENSE,
    "num_key_value_heads": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
FACTOR: dict[str, Any] = {"n_shared_experts": 1, "routed_scaling_factor": 2.5}


def read(architecture: str, config: dict[str, Any], **changes: Any) -> ModelTraits:
    return traits_of("m", {**config, "architectures": [architecture], **changes})


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Qwen3MoeForCausalLM", {"sliding_window": None, "use_sliding_window": False}),
        ("Qwen2MoeForCausalLM", {"sliding_window": 65536, "use_sliding_window": False}),
        ("PhiMoEForCausalLM", {"sliding_window": 131072, "max_position_embeddings": 131072}),
        ("MiniMaxM2ForCausalLM", {"attn_type_list": [1, 1, 1]}),
        ("GraniteMoeHybridForCausalLM", {"layer_types": ["attention"] * 4, "mamba_d_state": 128}),
        ("Qwen3NextForCausalLM", {"layer_types": ["full_attention"] * 4, "linear_num_value_heads": 32}),
        ("Qwen3NextForCausalLM", {"linear_num_value_heads": 32}),
        ("Qwen3_5MoeForCausalLM", {"layer_types": ["linear_attention", "full_attention"]}),
        ("MellumForCausalLM", {"layer_types": ["full_attention"] * 4, "sliding_window": 1024}),
        ("MixtralForCausalLM", {"sliding_window": 4096}),
        ("ExaoneMoeForCausalLM", {"sliding_windows": [None, 128, 4096]}),
        ("Cohere2MoeForCausalLM", {"sliding_window": 65536}),
        ("GraniteMoeSWAForCausalLM", {"sliding_window": 128}),
        ("GptOssForCausalLM", {"sliding_window": 128, "head_dim": 64}),
        ("GptOssForCausalLM", {"head_dim": 64, "quantization_config": {"quant_method": "mxfp4"}}),
        ("GptOssForCausalLM", {"head_dim": 64, "quantization_config": {"quant_method": "gpt_oss_mxfp4"}}),
        ("BaichuanForCausalLM", {"hidden_size": 4096}),
        ("FalconForCausalLM", {"alibi": False}),
        ("Glm4MoeForCausalLM", FACTOR),
        ("MiniCPMForCausalLM", {"num_experts": 0}),
        ("PhiMoEForCausalLM", {"lm_head_bias": False}),
        ("OlmoeForCausalLM", {"clip_qkv": None}),
        ("Gemma4ForCausalLM", {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh"}),
        ("NemotronHForCausalLM", {"mlp_hidden_act": "relu2", "hybrid_override_pattern": "*E*E"}),
        (
            "Gemma2ForCausalLM",
            {"attn_logit_softcapping": None, "num_experts": 0, "hidden_activation": "gelu_pytorch_tanh"},
        ),
        ("Qwen3VLMoeForConditionalGeneration", {"text_config": {"hidden_act": "silu", "num_attention_heads": 32}}),
    ],
)
def test_served(architecture: str, config: dict[str, Any]) -> None:
    assert problems(read(architecture, DENSE, **config), Parallelism(tp_size=4)) == []


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("MiMoV2FlashForCausalLM", {}, "attention whose values have another head size than its keys"),
        ("PanguProMoEV2ForCausalLM", {}, "attention with static sinks, on a backend that the model chooses"),
        ("MiniCPMForCausalLM", {}, "MiniCPMForCausalLM runs its experts through Triton kernels of its own"),
        ("GraniteMoeHybridForCausalLM", {"layer_types": ["mamba", "attention"]}, "in place of keys and values (mamba)"),
        ("GraniteMoeHybridForCausalLM", {"layer_types": ["linear_attention"], "mamba_n_heads": 8}, "values (mamba)"),
        ("JambaForCausalLM", {"mamba_d_state": 16}, "in place of keys and values (mamba)"),
        ("NemotronHForCausalLM", {"hybrid_override_pattern": "MEM*E"}, "in place of keys and values (mamba)"),
        ("MiniMaxText01ForCausalLM", {"attn_type_list": [0, 1]}, "(linear_attention)"),
        ("Lfm2MoeForCausalLM", {"layer_types": ["conv", "full_attention"]}, "in place of keys and values (conv)"),
        ("GraniteMoeSWAForCausalLM", {"torch_dtype": "float16"}, "attention sinks in float16 are not supported"),
        ("GraniteMoeSWAForCausalLM", {"torch_dtype": "float16"}, "Start with --dtype bfloat16"),
        ("GraniteMoeSWAForCausalLM", {"head_dim": 80}, "attention sinks with head size 80 are not supported"),
        ("MixtralForCausalLM", {"sliding_window": 4096, "head_dim": 320}, "over 4096 tokens with head size 320 is not"),
        ("MixtralForCausalLM", {"sliding_window": 4096, "head_dim": 320}, "Start with --max-model-len 4096 or less"),
        (
            "Cohere2MoeForCausalLM",
            {"sliding_window": 65536, "head_dim": 320},
            "with head sizes up to 256 it is. Choose",
        ),
        ("BloomForCausalLM", {}, "linear biases (ALiBi) are not supported"),
        ("BaichuanForCausalLM", {"hidden_size": 5120}, "linear biases (ALiBi) are not supported"),
        ("MptForCausalLM", {"attn_config": {"alibi": True}}, "linear biases (ALiBi) are not supported"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": 50.0}, "attention logits capped at 50"),
        (
            "PhiMoEForCausalLM",
            {"lm_head_bias": True},
            "vLLM leaves the bias of the output projection (lm_head_bias) out",
        ),
        (
            "OlmoeForCausalLM",
            {"clip_qkv": 8.0},
            "does not clamp queries, keys and values to 8 (clip_qkv), on any device",
        ),
        ("LagunaForCausalLM", {}, "LagunaForCausalLM gives wrong results: vLLM does not load the bias"),
        ("DbrxForCausalLM", {}, "DbrxForCausalLM cannot be loaded: vLLM looks for the parameters of its experts where"),
        ("JetMoeForCausalLM", {}, "gives other tokens than transformers"),
        ("LongcatFlashForCausalLM", {"zero_expert_num": 256}, "256 experts without weights (zero_expert_num"),
        ("MixtralForCausalLM", {"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4 weights are not supported"),
        ("KimiK3ForCausalLM", {"hidden_act": "situ"}, "experts with the activation situ are not supported"),
        ("DiffusionGemmaForBlockDiffusion", {}, "generating blocks of tokens by diffusion is not supported"),
        ("WhisperForConditionalGeneration", {"is_encoder_decoder": True}, "encoder-decoder models are not supported"),
        (
            "DeepseekV32ForCausalLM",
            {"index_topk": 2048},
            "sparse attention (sparse MLA, as in DeepSeek V3.2 and GLM-5), whose indexer picks 2048 tokens",
        ),
        ("DeepseekV3ForCausalLM", {"quantization_config": {"quant_method": "fp8"}}, "fp8 weights, in blocks"),
        (
            "Glm4MoeForCausalLM",
            {**FACTOR, "torch_dtype": "float16"},
            "float16 gives wrong results with routed_scaling_fac",
        ),
        ("Glm4MoeLiteForCausalLM", {**FACTOR, "torch_dtype": "float16"}, "start with --dtype bfloat16"),
        ("AXK1ForCausalLM", {**FACTOR, "torch_dtype": "float16"}, "start with --dtype bfloat16"),
    ],
)
def test_not_served(architecture: str, config: dict[str, Any], message: str) -> None:
    problem = problems(read(architecture, DENSE, **config))[0]
    assert message in problem
    assert problem.startswith("m: ")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("architecture", "config", "texts"),
    [
        ("MixtralForCausalLM", {"sliding_window": 4096}, ("attention over 4096 tokens cannot", "--max-model-len 4096")),
        ("Cohere2MoeForCausalLM", {"sliding_window": 65536}, ("attention over 65536 tokens cannot", "Choose another")),
        (
            "GraniteMoeSWAForCausalLM",
            {"sliding_window": 8},
            ("over 8 tokens and attention sinks cannot", "Choose anoth"),
        ),
    ],
)
def test_what_the_installed_cann_does_not_take_is_refused_with_its_words(
    architecture: str, config: dict[str, Any], texts: tuple[str, str]
) -> None:
    problem = cann_problem(read(architecture, DENSE, **config), "op: no band")
    assert problem.startswith("m: ")
    assert "by the installed CANN (op: no band): CANN 9.1 takes it" in problem
    assert all(text in problem for text in texts)


@pytest.mark.parametrize(
    ("module", "mended"),
    [
        ("phimoe", r"logits_processor\([^)]*bias"),
        ("olmoe", r"clip_qkv"),
        ("laguna", r"experts\.e_score_correction_bias[\"'].*routed_experts"),
        ("jetmoe", r""),
        ("dbrx", r"experts\.routed_experts"),
    ],
)
def test_upstreams_faults_are_still_there(module: str, mended: str) -> None:
    """Fails when vLLM mends one: then the model is served, and ``_upstreams_faults`` has a line less."""
    file = vllm_file("model_executor", "models", f"{module}.py")
    assert not file.exists() or re.search(mended, file.read_text()) is None


def test_a_checkpoint_in_fp8_is_refused_with_the_way_out() -> None:
    """As DeepSeek and Kimi publish theirs; W8A8 of the same model is not."""
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (problem,) = problems(read("DeepseekV3ForCausalLM", LATENT, quantization_config=fp8))
    assert problem == (
        "m: fp8 weights, in blocks with a scale each or not, are not supported on Ascend NPUs by this port: bfloat16 "
        "weights are, and W8A8 (int8) ones. Take a bfloat16 or W8A8 checkpoint of this model, or convert this one."
    )
    assert (
        problems(read("DeepseekV3ForCausalLM", LATENT, quantization_config={"quant_method": "compressed-tensors"}))
        == []
    )


def test_a_release_that_is_too_old_for_latent_attention_names_the_first_that_serves_it() -> None:
    model = read("DeepseekV3ForCausalLM", LATENT)
    assert latent_obstacle(first_release()) is None
    problem = latent_release_problem(model, latent_obstacle("0.14.1")) or ""
    assert f"vLLM 0.14.1 is older than {first_release()}, the first release that serves it" in problem
    assert "Install that or a newer one, or do without. Set VLLM_MLA_DISABLE=1" in problem
    other = read("LongcatFlashForCausalLM", LATENT)
    assert "VLLM_MLA_DISABLE" not in (latent_release_problem(other, latent_obstacle("0.14.1")) or "")
    plain = traits_of("m", LATENT, mla_disabled=True)
    assert latent_release_problem(plain, latent_obstacle("0.14.1")) is None
    assert latent_release_problem(model, None) is None


LATENT_SERVED = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "MistralLarge3ForCausalLM",
    "AXK1ForCausalLM",
    "KimiK25ForConditionalGeneration",
)


@pytest.mark.parametrize("architecture", LATENT_SERVED)
def test_latent_attention_is_served(architecture: str) -> None:
    for tp in (1, 2, 8):
        assert problems(read(architecture, LATENT), Parallelism(tp_size=tp)) == []
    flash = {**LATENT, "num_attention_heads": 20, "qk_nope_head_dim": 192, "v_head_dim": 256}
    assert problems(read(architecture, flash), Parallelism(tp_size=2)) == []


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"kv_lora_rank": 256}, "a latent (kv_lora_rank) of 256: only 512 is supported"),
        ({"qk_rope_head_dim": 32}, "a rotary part (qk_rope_head_dim) of 32: only 64 is supported"),
        ({"v_head_dim": 192}, "keys of 128 + 64 elements and values of 192: only 192/128 and 256/256 are supported"),
    ],
)
def test_latent_attention_of_other_sizes_is_refused_with_the_way_around(changes: dict[str, Any], limit: str) -> None:
    model = read("DeepseekV3ForCausalLM", LATENT | changes)
    problem = latent_attention(model) or ""
    assert limit in problem
    assert "Set VLLM_MLA_DISABLE=1" in problem
    assert problems(model)[0] == problem


def test_more_query_heads_than_a_decode_call_takes_are_refused() -> None:
    model = read("DeepseekV3ForCausalLM", LATENT | {"num_attention_heads": 256, "num_key_value_heads": 256})
    (problem,) = problems(model, Parallelism(tp_size=1))
    assert "256 query heads per rank: at most 128 are supported" in problem
    assert "Raise --tensor-parallel-size" in problem
    assert problems(model, Parallelism(tp_size=2)) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"layers_block_type": ["attention", "moe"]}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True),
        ({"layers_block_type": ["attention", "mamba"]}, False),
        ({"layer_types": ["full_attention", "something_new"]}, False),
        ({"mamba_d_state": 16}, False),
    ],
)
def test_a_class_that_can_have_states_has_none_where_every_layer_is_said_to_attend(
    config: dict[str, Any], told: bool
) -> None:
    assert attends_throughout(config) is told


def test_layers_with_states_are_served_on_the_releases_that_they_were_run_on() -> None:
    model = read("Qwen3NextForCausalLM", DENSE, linear_num_value_heads=32)
    assert state_release_problem(model, states_obstacle("0.32.0")) is None
    for release in ("0.31.0", "0.33.0"):
        problem = state_release_problem(model, states_obstacle(release)) or ""
        assert f"layers that keep a state (linear_attention) are not served: vLLM {release} is not supported" in problem
    assert state_release_problem(read("Qwen3MoeForCausalLM", DENSE), states_obstacle("0.31.0")) is None


def test_latent_attention_that_vllm_does_not_count_as_such_cannot_be_switched_off() -> None:
    model = traits_of("m", {**LATENT, "architectures": ["SarvamMLAForCausalLM"]}, mla_disabled=True)
    assert model.latent
    assert "(MLA) of SarvamMLAForCausalLM is not supported" in problems(model)[0]


@pytest.mark.parametrize("architecture", ["LongcatFlashForCausalLM", "PanguUltraMoEForCausalLM"])
def test_latent_attention_of_other_models_is_refused(architecture: str) -> None:
    model = read(architecture, LATENT)
    assert "Choose another model" in (latent_attention(model) or "")
    assert problems(model, Parallelism(tp_size=4)) == [latent_attention(model)]


@pytest.mark.parametrize("architecture", LATENT_SERVED)
def test_latent_attention_that_is_switched_off_is_plain_attention(architecture: str) -> None:
    plain = traits_of("m", {**LATENT, "architectures": [architecture]}, mla_disabled=True)
    assert (plain.head_size, plain.num_kv_heads, problems(plain, Parallelism(tp_size=4))) == (192, 32, [])


def test_mxfp4_weights_are_sliced_in_whole_groups_and_served_on_the_releases_that_they_were_run_on() -> None:
    config = {**DENSE, "head_dim": 64, "moe_intermediate_size": None, "intermediate_size": 2880}
    model = read("GptOssForCausalLM", config, quantization_config={"quant_method": "mxfp4"})
    assert problems(model, Parallelism(tp_size=2)) == []
    (problem,) = problems(model, Parallelism(tp_size=4))
    assert "give each 720 of the experts' intermediate size of 2880 of m" in problem
    assert "Add --enable-expert-parallel" in problem
    assert problems(model, Parallelism(tp_size=4, expert_parallel=True)) == []
    assert mxfp4_release_problem(model, mxfp4_obstacle("0.32.0")) is None
    too_old = mxfp4_release_problem(model, mxfp4_obstacle("0.31.0")) or ""
    assert "m: vLLM 0.31.0 is not supported for mxfp4 weights" in too_old
    assert "take a bfloat16 checkpoint" in too_old


@pytest.mark.parametrize(("heads", "padded"), [(1, 1), (3, 4), (16, 16), (20, 32), (128, 128)])
def test_heads_are_padded_to_a_count_that_the_operator_takes(heads: int, padded: int) -> None:
    assert padded_heads(heads) == padded


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"routed_scale": 1.0}, {"shared_experts": False}])
def test_float16_is_wrong_only_with_a_factor_and_shared_experts(change: dict[str, Any]) -> None:
    model = read("Glm4MoeForCausalLM", DENSE | FACTOR, torch_dtype="float16")
    assert model.divides_shared_experts
    assert problems(replace(model, **change)) == []


def test_models_that_undo_the_division_are_served_in_float16() -> None:
    assert problems(read("DeepseekForCausalLM", DENSE | FACTOR, torch_dtype="float16")) == []


def test_a_dtype_that_vllm_converts_is_not_judged_and_one_that_was_asked_for_is() -> None:
    model = read("Qwen3MoeForCausalLM", DENSE, torch_dtype="float32")
    assert problems(model) == []
    assert "Start with --dtype bfloat16 or --dtype float16" in problems(replace(model, dtype="float32"))[0]


@pytest.mark.parametrize(
    ("change", "tp", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 6, "vocab_size": 512}, 3, "the vocabulary of 512 (padded)"),
        ({"num_heads": 6, "num_kv_heads": 6, "vocab_size": 500}, 3, "Sizes that do: 1, 2."),
        ({"num_heads": 32}, 3, "the 32 attention heads and the 4 KV heads and the vocabulary"),
        ({"num_heads": 48, "num_kv_heads": 8, "vocab_size": 512 * 3}, 12, "does not divide the 8 KV heads"),
    ],
)
def test_tensor_parallel_sizes_that_divide_nothing_evenly(change: dict[str, Any], tp: int, message: str) -> None:
    model = replace(read("Qwen3MoeForCausalLM", DENSE), **change)
    problem = problems(model, Parallelism(tp_size=tp, expert_parallel=True))[0]
    assert problem.startswith(f"--tensor-parallel-size {tp} does not divide ")
    assert message in problem


def test_fewer_kv_heads_than_ranks_are_replicated() -> None:
    model = replace(read("Qwen3MoeForCausalLM", DENSE), vocab_size=512)
    assert problems(model, Parallelism(tp_size=8, expert_parallel=True)) == []


def test_experts_that_are_sliced_have_to_be_divided_by_all_ranks() -> None:
    model = read("Qwen3MoeForCausalLM", DENSE)
    (problem,) = problems(model, Parallelism(tp_size=4, dp_size=128))
    assert "4 x 128 ranks (tensor x data parallel) do not divide the experts' intermediate size of 768" in problem
    assert problems(model, Parallelism(tp_size=4, dp_size=128, expert_parallel=True)) == []
    assert problems(model, Parallelism(tp_size=4, dp_size=64)) == []


@pytest.mark.parametrize(
    ("heads", "limit"),
    [
        ((24, 4, 2), "multiple of 16"),
        ((528, 4, 2), "at most 512"),
        ((128, 257, 257), "at most 256 query heads"),
        ((128, 65, 1), "at most 64"),
        ((128, 5, 2), "whole number"),
        ((512, 128, 128), "KV heads x head size must be at most 65535"),
        ((512, 128, 8), "query heads x head size must be at most 65534 with this head size"),
    ],
)
def test_heads_that_the_operator_does_not_take(heads: tuple[int, int, int], limit: str) -> None:
    assert limit in (heads_problem(*heads) or "")
    model = replace(
        read("Qwen3MoeForCausalLM", DENSE), head_size=heads[0], num_heads=2 * heads[1], num_kv_heads=2 * heads[2]
    )
    assert heads_problem(*heads) in problems(model, Parallelism(tp_size=2))


def test_what_is_not_known_is_not_judged() -> None:
    assert problems(traits_of("m", {"num_experts": 8}), Parallelism(tp_size=3, dp_size=2)) == []
