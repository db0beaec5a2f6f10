# SPDX-License-Identifier: Apache-2.0
"""The ``plan`` command, from a configuration on disk to tables, JSON and a plot; and the byte formulas it shows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.command_line import Called, called
from vllm_ascend_patch.commands.plan import command, default_captured_tokens
from vllm_ascend_patch.core.moe.cost import between_hosts
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.limits import MoEFacts
from vllm_ascend_patch.core.moe.model_facts import ModelFacts
from vllm_ascend_patch.core.moe.soc import Soc
from vllm_ascend_patch.core.moe.traffic import (
    distinct_ranks,
    floor,
    floor_between_hosts,
    method_traffic,
    other_hosts,
)
from vllm_ascend_patch.releases.latent import first_release

QWEN3_30B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "torch_dtype": "bfloat16",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
DEEPSEEK_V3: dict[str, Any] = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "torch_dtype": "bfloat16",
}
CONFIGURATIONS = Path(__file__).parent / "configurations"
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        }
    },
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B))
    return tmp_path


def run(*arguments: object, buffsize: str = "") -> Called:
    return called(command, *arguments, environment={"HCCL_BUFFSIZE": buffsize})


def planned(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_plan_names_methods_capacity_and_memory(model: Path) -> None:
    plan = planned(model, "--tp", 2, "--dp", 8, "--soc", "A3", "--enforce-eager")
    assert [(r["first"], r["last"], r["method"]) for r in plan["regimes"]] == [
        (1, 256, "mc2"),
        (257, 2048, "alltoall"),
    ]
    assert plan["regimes"][1]["reason"].startswith("cheapest of alltoall 170 us + 0.130 us (24.9 KiB) per token")
    assert (plan["capacity"]["rows"], plan["capacity"]["hccl_floor_mib"]) == (128, 153)
    assert plan["facts"]["sequence_parallel"]
    # 8 experts x 3 x 2048 x 768 x 2 bytes x 48 layers
    assert plan["expert_mib_per_rank"] == 3456


def test_plan_shows_the_same_on_a_terminal(model: Path) -> None:
    result = run(model, "--tp", 2, "--dp", 8)
    assert result.exit_code == 0
    for text in (
        "experts per rank",
        "HCCL_BUFFSIZE floor",
        "335..512",
        "allgather",
        "cannot be captured",
        "floor, skewed",
        "6.60 of 16, routed evenly",
    ):
        assert text in result.output


def test_plan_answers_for_a_default_serve_which_captures_graphs(tmp_path: Path) -> None:
    """Qwen3-235B on 16 NPUs: an eager decode step needs 580 MiB, the largest graph of a default serve 1160."""
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3_30B, "hidden_size": 4096, "moe_intermediate_size": 1536}))
    cluster = (tmp_path, "--tp", 1, "--dp", 16, "--soc", "A3")
    smaller = planned(*cluster, "--hccl-buffsize", 1024)
    assert smaller["capacity"]["rows"] == 451
    assert "HCCL_BUFFSIZE=1160 would allow 512 tokens" in smaller["capacity"]["limited_by"]
    assert planned(*cluster, "--hccl-buffsize", 1160)["scheduler"]["max_captured_tokens"] == 512
    assert planned(*cluster, "--hccl-buffsize", 1024, "--enforce-eager")["capacity"]["hccl_floor_mib"] == 580
    assert planned(*cluster, "--hccl-buffsize", 1024, "--captured-tokens", 256)["capacity"]["hccl_floor_mib"] == 580


@pytest.mark.parametrize(
    ("tokens", "requests", "captured"),
    [
        (2048, 256, 512),
        (2048, 1000, 512),
        (2048, 100, 200),
        (2048, 130, 256),
        (2048, 131, 256),
        (2048, 3, 4),
        (2048, 1, 2),
        (300, 256, 300),
        (100, 64, 100),
        (1, 1, 1),
    ],
)
def test_the_largest_graph_of_a_default_serve(tokens: int, requests: int, captured: int) -> None:
    """Values of vLLM's own ``_set_cudagraph_sizes``; tests/serve/test_graph_config.py asks it."""
    assert default_captured_tokens(tokens, requests) == captured


@pytest.mark.parametrize(
    "options",
    [("--moe-comm", "alltoall"), ("--captured-tokens", 0), ("--speculative-tokens", 2, "--vllm", "0.12.0")],
)
def test_what_runs_eagerly_captures_nothing(model: Path, options: tuple[object, ...]) -> None:
    assert planned(model, "--dp", 8, *options)["scheduler"]["max_captured_tokens"] == 0


def test_drafted_tokens_are_captured_too(model: Path) -> None:
    """20 requests of a token and three drafts each."""
    options = ("--speculative-tokens", 3, "--max-num-seqs", 20, "--vllm", "0.32.0")
    assert planned(model, "--dp", 8, *options)["scheduler"]["max_captured_tokens"] == 160


def test_plan_without_expert_parallelism_gathers_and_slices_every_expert(model: Path) -> None:
    plan = planned(model, "--tp", 4, "--no-expert-parallel")
    assert {r["method"] for r in plan["regimes"]} == {"allgather"}
    assert plan["expert_mib_per_rank"] == 128 * 3 * 2048 * 768 * 2 * 48 / 4 / 2**20


SERVED_NOT = {
    "latent attention": (
        {**DEEPSEEK_V3, "architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 256, "num_attention_heads": 128},
        "multi-head latent attention (MLA) with a latent (kv_lora_rank) of 256",
    ),
    "mxfp4": (
        {**QWEN3_30B, "quantization_config": {"quant_method": "mxfp4"}},
        "mxfp4 weights are not supported",
    ),
    "states": (
        {**QWEN3_30B, "architectures": ["JambaForCausalLM"], "mamba_d_state": 16},
        "layers that keep a state in place of keys and values (mamba) are not supported",
    ),
}


@pytest.mark.parametrize("case", SERVED_NOT)
def test_plan_says_first_that_a_model_is_not_served_and_exits_with_1(tmp_path: Path, case: str) -> None:
    config, message = SERVED_NOT[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run(tmp_path, "--dp", 8)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"Not served: {tmp_path}: {message}")
    assert "Method per step" in result.stdout, "what would be done is shown all the same"
    machine_read = run(tmp_path, "--dp", 8, "--json")
    assert machine_read.exit_code == 1
    assert message in json.loads(machine_read.stdout)["not_served"][0]


def test_plan_of_a_served_model_says_so(model: Path) -> None:
    assert planned(model)["not_served"] == []
    assert "yes, by what its configuration tells" in run(model).output


def modelslim(folder: Path, kind: str, with_scale: bool = True) -> Path:
    """A folder with a ModelSlim checkpoint of one expert."""
    (folder / "config.json").write_text(json.dumps(QWEN3_30B))
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    tensors = {name: torch.zeros(768, 2048, dtype=torch.int8), "lm_head.weight": torch.zeros(4, 4)}
    if with_scale:
        tensors[f"{name}_scale"] = torch.ones(768, 1)
    if kind == "W4A8_DYNAMIC":  # two outputs in a byte
        tensors[name] = tensors[name][:384].clone()
        tensors[name.replace("weight", "scale_bias")] = torch.ones(768, 1)
    types = {key: "FLOAT" if key == "lm_head.weight" else kind for key in tensors}
    (folder / "quant_model_description.json").write_text(json.dumps(types))
    save_file(tensors, folder / "quant_model_weights.safetensors")
    return folder


def test_plan_of_a_modelslim_checkpoint_counts_its_experts_in_int8(tmp_path: Path) -> None:
    plan = planned(modelslim(tmp_path, "W8A8_DYNAMIC"))
    assert plan["not_served"] == []
    assert plan["facts"]["quantized"]
    assert plan["expert_mib_per_rank"] == 128 * 3 * 2048 * 768 * 48 / 2**20
    assert plan["checkpoint"]["what"] == "ModelSlim: 1 weights FLOAT, 1 weights W8A8_DYNAMIC"
    assert plan["checkpoint"]["expert_bytes"] == 768 * 2048 + 768 * 4
    assert plan["checkpoint"]["total_bytes"] == plan["checkpoint"]["expert_bytes"] + 64


def test_plan_says_which_releases_serve_modelslim_checkpoints(tmp_path: Path) -> None:
    result = run(modelslim(tmp_path, "W8A8_DYNAMIC"), "--vllm", "0.10.2", "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["not_served"]
    assert problem.startswith("vLLM 0.10.2 is not supported for ModelSlim checkpoints by this port, which needs vLLM ")


def test_plan_of_int4_experts_counts_half_a_byte_per_weight(tmp_path: Path) -> None:
    plan = planned(modelslim(tmp_path, "W4A8_DYNAMIC"))
    assert plan["not_served"] == []
    assert plan["expert_mib_per_rank"] == 128 * 3 * 2048 * 768 * 48 / 2**21
    assert plan["checkpoint"]["expert_bytes"] == 384 * 2048 + 2 * 768 * 4


@pytest.mark.parametrize(
    ("kind", "with_scale", "message"),
    [
        ("W8A16", True, "up_proj.weight is W8A16, which is not supported on Ascend NPUs by this port"),
        ("W8A8_DYNAMIC", False, "the checkpoint lacks model.layers.0.mlp.experts.0.up_proj.weight_scale: "),
    ],
)
def test_plan_says_of_a_modelslim_checkpoint_what_a_start_would(
    kind: str, with_scale: bool, message: str, tmp_path: Path
) -> None:
    result = run(modelslim(tmp_path, kind, with_scale))
    assert result.exit_code == 1
    assert message in result.stdout


@pytest.mark.parametrize("with_scale", [True, False])
def test_plan_of_a_compressed_tensors_checkpoint_names_its_scheme_and_what_it_lacks(
    with_scale: bool, tmp_path: Path
) -> None:
    part = {"num_bits": 8, "type": "int"}
    group = {
        "targets": ["Linear"],
        "weights": {**part, "strategy": "channel"},
        "input_activations": {**part, "strategy": "token", "dynamic": True},
    }
    own = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    tensors = {name: torch.zeros(768, 2048, dtype=torch.int8), f"{name}_scale": torch.ones(768, 1)}
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3_30B, "quantization_config": own}))
    save_file({key: t for key, t in tensors.items() if with_scale or key == name}, tmp_path / "model.safetensors")
    result = run(tmp_path, "--json")
    plan = json.loads(result.stdout)
    assert plan["checkpoint"]["what"] == "compressed-tensors: int8 per channel weights, int8 per token activations"
    assert plan["expert_mib_per_rank"] == 128 * 3 * 2048 * 768 * 48 / 2**20
    assert result.exit_code == (0 if with_scale else 1)
    assert [f"the checkpoint lacks {name}_scale" in problem for problem in plan["not_served"]] == [True] * (
        not with_scale
    )


def test_plan_takes_the_setting_that_has_a_model_served_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SERVED_NOT["latent attention"][0]))
    monkeypatch.setenv("VLLM_MLA_DISABLE", "1")
    assert planned(tmp_path, "--dp", 8)["not_served"] == []


def test_plan_of_a_window_depends_on_the_longest_request(tmp_path: Path) -> None:
    config = {**QWEN3_30B, "head_dim": 320, "sliding_window": 4096, "max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "sliding-window attention over 4096 tokens with head size 320 is not" in run(tmp_path).stdout
    assert planned(tmp_path, "--max-model-len", 4096)["not_served"] == []


def latent_config(name: str, folder: Path, **changes: Any) -> Path:
    """A published configuration, changed, in a folder of its own."""
    config = json.loads((CONFIGURATIONS / f"{name}.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("name", "billions", "plainly"),
    [("deepseek_v3", 671.0, 85.33), ("kimi_k2", 1026.4, 42.67)],
)
def test_plan_of_latent_attention_knows_its_cache(tmp_path: Path, name: str, billions: float, plainly: float) -> None:
    """61 layers x 576 elements x 2 bytes, whatever the number of heads; on one rank all published parameters."""
    memory = planned(latent_config(name, tmp_path), "--vllm", "0.32.0")["memory"]
    assert memory["cache_per_token"] == 61 * 576 * 2
    assert memory["plain_cache_per_token"] / memory["cache_per_token"] == pytest.approx(plainly, abs=0.01)
    assert memory["weights"] / 2 / 1e9 == pytest.approx(billions, abs=0.1)
    assert memory["tokens"] == 0


def test_plan_of_latent_attention_says_what_fits(tmp_path: Path) -> None:
    """DeepSeek-V3 on 16 NPUs of 64 GiB: not in bfloat16; in W8A8, with 140,000 tokens per rank of data parallelism."""
    cluster = ("--tp", 1, "--dp", 16, "--vllm", "0.32.0")
    floats = run(latent_config("deepseek_v3", tmp_path), *cluster)
    assert floats.exit_code == 0
    assert "of 58.9 GiB: they do not fit" in floats.output
    model = latent_config("deepseek_v3", tmp_path, quantization_config=W8A8)
    memory = planned(model, *cluster)["memory"]
    # 58 x 16 experts and shared ones; attention but the latents' up-projection, dense layers: int8; embeddings, routers
    experts = 58 * 16 * 3 * 7168 * 2048
    attention = 61 * (1536 * (7168 + 24576) + 7168 * 576 + 16384 * 7168 + 2 * 512 * 32768)
    others = 3 * 3 * 7168 * 18432 + 58 * 3 * 7168 * 2048 + 2 * (2 * 129280 + 58 * 256) * 7168
    assert memory["weights"] == experts + attention + others
    assert memory["tokens"] == (int(64 * 2**30 * 0.92) - memory["weights"]) // (61 * 576 * 2)
    assert "68.6 KiB per token and rank, whatever the number of heads; VLLM_MLA_DISABLE=1: 5,856.0 KiB" in (
        run(model, *cluster).output.replace("\n", " ")
    )
    wider = planned(model, "--tp", 4, "--dp", 4, "--vllm", "0.32.0")["memory"]
    assert wider["cache_per_token"] == memory["cache_per_token"], "every tensor parallel rank has all of it"
    assert wider["weights"] < memory["weights"]


def test_plan_counts_int4_weights_and_the_scales_of_their_groups(tmp_path: Path) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
    int4 = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
    config = {**QWEN3_30B, **heads, "quantization_config": int4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = planned(tmp_path, "--tp", 1, "--vllm", "0.32.0")
    assert plan["model"]["int4"]
    assert not plan["facts"]["quantized"]
    experts, attention = 128 * 3 * 2048 * 768, 2048 * 128 * 2 * (32 + 4)
    others = 2 * 2048 * config["vocab_size"] * 2 + 48 * 128 * 2048 * 2
    assert plan["memory"]["weights"] == 48 * (experts + attention) * 18 // 32 + others


def test_plan_of_grouped_query_attention_divides_its_cache(model: Path) -> None:
    config = {**QWEN3_30B, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
    (model / "config.json").write_text(json.dumps(config))
    for tp, heads in ((1, 4), (2, 2), (8, 1)):
        memory = planned(model, "--tp", tp, "--dp", 8)["memory"]
        assert memory["cache_per_token"] == 2 * heads * 128 * 48 * 2
        assert memory["plain_cache_per_token"] is None


def test_plan_asks_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a start does; the published checkpoint is fp8, which is said before."""
    model = latent_config("kimi_k2", tmp_path)
    assert planned(model, "--vllm", first_release())["served_from"] == first_release()
    result = run(model, "--vllm", "0.14.1")
    assert result.exit_code == 1
    assert f"vLLM 0.14.1 is older than {first_release()}, the first release that serves it" in result.stdout
    monkeypatch.setenv("VLLM_MLA_DISABLE", "1")
    plain = planned(model, "--vllm", "0.14.1")
    assert (plain["served_from"], plain["memory"]["plain_cache_per_token"]) == (None, None)
    assert plain["memory"]["cache_per_token"] == 64 * 2 * 192 * 61 * 2
    monkeypatch.delenv("VLLM_MLA_DISABLE")
    published = run(latent_config("kimi_k2", tmp_path, quantization_config=FP8), "--vllm", "0.32.0")
    assert published.exit_code == 1
    assert "Take a bfloat16 or W8A8 checkpoint" in published.stdout
    assert run(model, "--vllm", "new").exit_code == 2


def test_plan_draws(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    picture = tmp_path / "plan.png"
    assert run(model, "--dp", 8, "--plot", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dp", 8, "--moe-comm", "mc2"), "is 2048, 1..512 is supported"),
        (("--dp", 8, "--hccl-buffsize", 1), "HCCL_BUFFSIZE=1 does not hold a single token of MC2"),
        (("--moe-comm", "alltoall"), "alltoall was forced, but expert parallel size is 1"),
    ],
)
def test_plan_refuses_what_start_up_would_refuse(model: Path, arguments: tuple[object, ...], message: str) -> None:
    result = run(model, *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tp", 0), "0 is not in the range x>=1"),
        (("--dp", -1), "-1 is not in the range x>=1"),
        (("--nodes", 0), "0 is not in the range x>=1"),
        (("--redundant-experts", -1), "-1 is not in the range x>=0"),
        (("--max-num-batched-tokens", 0), "0 is not in the range x>=1"),
        (("--max-num-seqs", 0), "0 is not in the range x>=1"),
        (("--max-num-seqs", 4096), "--max-num-seqs 4096 do not fit into --max-num-batched-tokens 2048"),
        (("--speculative-tokens", -1), "-1 is not in the range x>=0"),
        (("--captured-tokens", -1), "-1 is not in the range x>=0"),
        (("--captured-tokens", 8, "--enforce-eager"), "--captured-tokens 8 is no --enforce-eager"),
        (("--hccl-buffsize", 0), "0 is not in the range x>=1"),
        (("--moe-comm", "magic"), "'magic' is not one of 'auto', 'allgather', 'mc2', 'alltoall', 'hierarchical'"),
        (("--dp", 512), "1 x 512 ranks cannot share 128 experts"),
        (("--dp", 2, "--nodes", 5), "1 x 2 ranks cannot be divided over --nodes 5"),
        (("--links", "196"), "VLLM_ASCEND_PATCH_LINKS='196' is not valid: use two numbers above 0 with a comma"),
        (("--links", "196,0"), "VLLM_ASCEND_PATCH_LINKS='196,0' is not valid"),
        (("--plot", "/nonexistent/x.png"), "/nonexistent is no folder that can be written"),
        (("--plot", "x.foo"), "x.foo says no format that can be drawn: it has to end in .png, .svg, .pdf"),
        (("--plot", "x"), "x says no format"),
    ],
)
def test_a_wrong_argument_is_one_line_before_any_work(model: Path, arguments: tuple[object, ...], message: str) -> None:
    result = run(model, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: vllm-ascend-patch plan ")
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert message in error


def test_more_ranks_than_experts_are_fine_where_every_rank_has_a_slice_of_each(model: Path) -> None:
    assert run(model, "--dp", 256, "--no-expert-parallel").exit_code == 0


@pytest.mark.parametrize("value", ["0", "many", "1.5", "-3"])
def test_a_window_in_the_environment_that_is_no_size_is_an_error_as_in_a_serve(model: Path, value: str) -> None:
    result = run(model, buffsize=value)
    assert result.exit_code == 2
    assert f"HCCL_BUFFSIZE='{value}' is not valid: use a whole number of MiB above 0" in result.output


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\xff"])
def test_plan_of_something_that_is_no_configuration_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    result = run(tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "is not a readable model configuration" in result.stderr


def test_plan_of_something_that_is_no_moe_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "num_hidden_layers": 2}))
    assert "no routed experts in the configuration" in run(tmp_path).output


def test_configurations_are_read_as_their_families_write_them() -> None:
    deepseek = ModelFacts.from_config("v3", DEEPSEEK_V3)
    assert (deepseek.moe_layers, deepseek.num_experts, deepseek.intermediate_size) == (58, 256, 2048)
    nested = ModelFacts.from_config("vl", {"text_config": QWEN3_30B})
    assert (nested.num_experts, nested.moe_layers) == (128, 48)
    mixtral = {"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2}
    assert ModelFacts.from_config("m", {**mixtral, "num_hidden_layers": 32}).intermediate_size == 14336
    sparse = ModelFacts.from_config("q", {**QWEN3_30B, "decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert sparse.moe_layers == 23
    quantized = ModelFacts.from_config("w8a8", {**QWEN3_30B, "quantization_config": W8A8})
    assert quantized.quantized
    assert quantized.expert_bytes == 3 * 2048 * 768
    fp8 = ModelFacts.from_config("fp8", {**QWEN3_30B, "quantization_config": {"quant_method": "fp8"}})
    assert not fp8.quantized
    assert "quantisation 'fp8' of experts is not served" in fp8.note
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
    int4 = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    packed = ModelFacts.from_config("w4a16", {**QWEN3_30B, "quantization_config": int4})
    assert (packed.numbers, packed.quantized, packed.int4) == ("W4A16", False, True)
    assert packed.expert_bytes == 3 * 2048 * 768 // 32 * (16 + 2)  # 32 weights of half a byte, and their scale
    weights, inputs = (
        {"num_bits": bits, "type": "int", "strategy": per} for bits, per in ((4, "channel"), (8, "token"))
    )
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {**inputs, "dynamic": True}}
    int4 = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    both = ModelFacts.from_config("w4a8", {**QWEN3_30B, "quantization_config": int4})
    assert (both.numbers, both.quantized, both.int4) == ("W4A8", True, True)
    assert both.expert_bytes == 3 * 2048 * 768 // 2
    with pytest.raises(MoEConfigError, match="dtype 'float8' is not supported"):
        ModelFacts.from_config("d", {**QWEN3_30B, "torch_dtype": "float8"})


GLM4_MOE: dict[str, Any] = {
    "hidden_size": 5120,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 92,
    "first_k_dense_replace": 3,
    "torch_dtype": "bfloat16",
}


def test_no_method_is_shown_below_the_floor_and_the_cheapest_is_chosen(tmp_path: Path) -> None:
    """Top-8 on four ranks, where a row per expert moves twice what gathering everything does."""
    (tmp_path / "config.json").write_text(json.dumps(GLM4_MOE))
    plan = planned(tmp_path, "--dp", 4, "--soc", "A3", "--enforce-eager", "--max-num-batched-tokens", 8192)
    assert [(r["first"], r["method"]) for r in plan["regimes"]] == [(1, "mc2"), (58, "allgather"), (878, "alltoall")]
    largest = plan["traffic"][-1]
    assert (largest["tokens"], largest["chosen"]) == (8192, "alltoall")
    assert round(largest["allgather"], 1) == 481.5
    assert round(largest["floor"], 1) == 434.8
    assert largest["alltoall"] <= 1.05 * largest["floor"]
    for row in plan["traffic"]:
        assert row["floor_skewed"] < row["floor"]
        assert all(row["floor"] < row[method] for method in row["microseconds"])
        allowed = {method: us for method, us in row["microseconds"].items() if method != "mc2" or row["tokens"] <= 57}
        assert row["chosen"] == min(allowed, key=allowed.__getitem__)


def test_traffic_formulas_by_hand() -> None:
    facts = MoEFacts(
        soc=Soc.A3, operator_version=2, tp_size=2, dp_size=4, ep_size=8, num_experts=64, hidden_size=1024, top_k=4
    )
    # 4 of 64 experts miss the 8 of one rank with 56 * 55 * 54 * 53 / (64 * 63 * 62 * 61)
    reached = 8 * (1 - 56 * 55 * 54 * 53 / (64 * 63 * 62 * 61))
    assert distinct_ranks(facts) == pytest.approx(reached)
    # 8 tokens per DP rank, 4 per rank, 7 of 8 ranks remote, 2048 bytes there and back
    assert floor(facts, 8).total == pytest.approx(2 * 4 * reached * 7 / 8 * 2048)
    assert method_traffic(facts, "alltoall", 8).rows == floor(facts, 8).rows
    # beside each row 4 ids of 4 bytes and 4 weights of 4; counts of 8 bytes for 1 to 4 copies on 8 ranks, to 7 ranks
    assert method_traffic(facts, "alltoall", 8).routing == pytest.approx(4 * reached * 7 / 8 * 32 + 8 * 4 * 8 * 7)
    assert method_traffic(facts, "mc2", 8).rows == 2 * 4 * 4 * 7 / 8 * 2048
    assert method_traffic(facts, "mc2", 8).tp == 1 * 4 * 2048
    gather = method_traffic(facts, "allgather", 8)
    assert gather.rows == 2 * 3 * 8 * 2048
    assert gather.routing == 3 * 8 * 4 * 8
    assert gather.tp == 2 * 1 / 2 * 8 * 2048
    assert method_traffic(replace(facts, sequence_parallel=True), "allgather", 8).rows == 2 * 7 * 4 * 2048


def test_traffic_in_two_levels_by_hand() -> None:
    facts = MoEFacts(
        soc=Soc.A2,
        operator_version=2,
        tp_size=1,
        dp_size=8,
        ep_size=8,
        num_experts=64,
        hidden_size=1024,
        top_k=4,
        num_nodes=2,
        ranks_per_host=(5, 3),
    )
    # 40 experts are on the first host, where 5 of 8 tokens are; 24 on the second
    first = 1 - 24 * 23 * 22 * 21 / (64 * 63 * 62 * 61)
    second = 1 - 40 * 39 * 38 * 37 / (64 * 63 * 62 * 61)
    others = 3 / 8 * first + 5 / 8 * second
    assert other_hosts(facts) == pytest.approx(others)
    assert floor_between_hosts(facts, 8) == pytest.approx(8 * others * 2 * 2048)
    traffic = method_traffic(facts, "hierarchical", 8)
    # to each rank that a token has to reach, but the two relays themselves
    reached = 1 - 56 * 55 * 54 * 53 / (64 * 63 * 62 * 61)
    assert traffic.rows == pytest.approx(8 * (others + reached * 6) * 2 * 2048)
    # 2 hosts and 1 to 4 copies on 8 ranks, 8 bytes each; 3 ranks are elsewhere for five, 5 for three
    counts = (2 + 8 * 4) * 8
    assert traffic.routing == pytest.approx(8 * (others + reached * 6) * 32 + counts * 7)
    apart = 8 * others * (2 * 2048 + 32) + counts * 2 * 15 / 8
    assert between_hosts(facts, "hierarchical", 8) == pytest.approx(apart)
    # all other methods send to every other rank alike
    alltoall = method_traffic(facts, "alltoall", 8).over_ep
    assert between_hosts(facts, "alltoall", 8) == pytest.approx(alltoall * (2 * 15 / 8) / 7)


def test_plan_over_hosts_says_what_crosses_them_and_why_two_levels(model: Path) -> None:
    plan = planned(model, "--dp", 16, "--soc", "A2", "--nodes", 2, "--enforce-eager", "--max-num-batched-tokens", 8192)
    assert [(r["first"], r["method"]) for r in plan["regimes"]] == [(1, "mc2"), (197, "hierarchical")]
    assert "cheapest of hierarchical 242 us" in plan["regimes"][1]["reason"]
    largest = plan["traffic"][-1]
    assert largest["floor"] < largest["alltoall"] < largest["hierarchical"]
    apart = largest["between_hosts"]
    assert apart["floor"] < apart["hierarchical"] < 1.02 * apart["floor"]
    assert apart["alltoall"] > 3 * apart["floor"]
    shown = run(model, "--dp", 16, "--soc", "A2", "--nodes", 2).output
    assert "Of that, to other hosts: MiB" in shown
    assert "196 GB/s inside a host, 25 GB/s to other hosts" in shown
    fast = planned(model, "--dp", 16, "--soc", "A2", "--nodes", 2, "--links", "196,196", "--enforce-eager")
    assert {r["method"] for r in fast["regimes"]} == {"mc2", "alltoall"}
    assert "1.00, routed evenly" in shown
    assert "Of that, to other hosts" not in run(model, "--dp", 16, "--soc", "A2").output


@pytest.mark.parametrize(("top_k", "ranks", "reached"), [(1, 4, 1), (8, 2, 2), (64, 8, 8), (2, 64, 2)])
def test_a_token_reaches_no_more_ranks_than_it_has_experts_or_there_are(top_k: int, ranks: int, reached: float) -> None:
    facts = MoEFacts(
        soc=Soc.A3,
        operator_version=2,
        tp_size=1,
        dp_size=ranks,
        ep_size=ranks,
        num_experts=64,
        hidden_size=1024,
        top_k=top_k,
    )
    assert distinct_ranks(facts) == pytest.approx(reached, rel=0.01)
    assert distinct_ranks(facts, skewed=True) <= distinct_ranks(facts) + 1e-6


def test_skewed_routing_is_that_of_drawn_experts() -> None:
    """Against 4000 tokens of 8 experts each, drawn with the weights."""
    facts = MoEFacts(
        soc=Soc.A3, operator_version=2, tp_size=1, dp_size=8, ep_size=8, num_experts=64, hidden_size=1024, top_k=8
    )
    draw = random.Random(0)
    ranks = 0
    for _ in range(4000):
        times = sorted((draw.expovariate(1 / (expert + 1)), expert // 8) for expert in range(64))
        ranks += len({rank for _, rank in times[:8]})
    assert distinct_ranks(facts, skewed=True) == pytest.approx(ranks / 4000, rel=0.03)


def test_planning_needs_no_torch_and_takes_half_a_second(model: Path) -> None:
    """In a process of its own, without a launcher; torch would be found, and is not asked for."""
    program = (
        "import sys, vllm_ascend_patch.__main__ as command_line\n"
        "try:\n"
        "    command_line.main()\n"
        "finally:\n"
        "    print('imported:', *{'torch', 'torch_npu', 'numpy', 'vllm', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "TORCH_"))}
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", str(model), "--tp", "2", "--dp", "8"],
        capture_output=True,
        text=True,
        env={**environment, "VLLM_ASCEND_PATCH": "0"},
        timeout=60,
        check=False,
    )
    after = os.times()
    assert (done.returncode, done.stderr) == (0, "imported:\n")
    assert "experts per rank" in done.stdout
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5
