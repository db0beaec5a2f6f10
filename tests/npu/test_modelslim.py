# SPDX-License-Identifier: Apache-2.0
"""What a ModelSlim description says: the type of each layer, and what is refused, by the tensor and type found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_ascend_patch.core.modelslim import Description, ModelSlimError, find, problems, read

LAYER = "model.layers.0"
TYPES = {
    "model.embed_tokens.weight": "FLOAT",
    f"{LAYER}.self_attn.q_proj.weight": "W8A8",
    f"{LAYER}.self_attn.q_proj.input_scale": "W8A8",
    f"{LAYER}.self_attn.k_proj.weight": "W8A8",
    f"{LAYER}.self_attn.v_proj.weight": "W8A8",
    f"{LAYER}.self_attn.o_proj.weight": "FLOAT",
    f"{LAYER}.mlp.gate.weight": "FLOAT",
    f"{LAYER}.mlp.experts.0.gate_proj.weight": "W8A8_DYNAMIC",
    f"{LAYER}.mlp.experts.0.up_proj.weight": "W8A8_DYNAMIC",
    f"{LAYER}.mlp.experts.1.down_proj.weight": "W8A8_DYNAMIC",
    f"{LAYER}.input_layernorm.weight": "FLOAT",
    "model.layers.1.mlp.shared_experts.gate_proj.weight": "W8A8_MIX",
    "model.layers.1.mlp.shared_experts.up_proj.weight": "W8A8_MIX",
    "lm_head.weight": "FLOAT",
}
WHOLE = {"model_quant_type": "W8A8", "version": "1.0.0", "group_size": 0}


def described(changes: dict[str, Any] | None = None, **whole: Any) -> Description:
    return Description.of("FILE", {**WHOLE, **TYPES, **(changes or {}), **whole})


def test_a_layer_has_the_type_of_its_shards_and_experts_that_of_their_weights() -> None:
    found = described()
    assert found.linear_type(f"{LAYER}.self_attn.qkv_proj", {}) == "W8A8"
    assert found.linear_type(f"{LAYER}.self_attn.o_proj", {}) == "FLOAT"
    assert found.linear_type("model.layers.1.mlp.shared_experts.gate_up_proj", {}) == "W8A8_MIX"
    assert found.expert_type(f"{LAYER}.mlp.experts") == "W8A8_DYNAMIC"
    assert found.int8_experts
    assert list(problems(found, drafts=True)) == []


def test_experts_may_have_int4_weights() -> None:
    names = [f"{LAYER}.mlp.experts.0.gate_proj", f"{LAYER}.mlp.experts.0.up_proj", f"{LAYER}.mlp.experts.1.down_proj"]
    found = described({f"{name}.{kind}": "W4A8_DYNAMIC" for name in names for kind in ("weight", "scale_bias")})
    assert list(problems(found)) == []
    assert found.expert_type(f"{LAYER}.mlp.experts") == "W4A8_DYNAMIC"
    assert (found.int8_experts, found.int4_experts) == (True, True)
    assert not described().int4_experts


def test_a_models_own_names_of_shards_come_first() -> None:
    found = described({f"{LAYER}.attn.one.weight": "FLOAT", f"{LAYER}.attn.two.weight": "FLOAT"})
    assert found.linear_type(f"{LAYER}.attn.qkv_proj", {"qkv_proj": ["one", "two"]}) == "FLOAT"
    assert found.names(f"{LAYER}.attn.qkv_proj", {"qkv_proj": ["one", "two"]}) == [
        f"{LAYER}.attn.one",
        f"{LAYER}.attn.two",
    ]


def test_a_prediction_layer_is_found_without_the_drafters_block() -> None:
    found = described()
    assert found.linear_type(f"{LAYER}.mtp_block.self_attn.qkv_proj", {}) == "W8A8"
    assert found.expert_type(f"{LAYER}.mtp_block.mlp.experts") == "W8A8_DYNAMIC"


def test_names_follow_the_models_mapping() -> None:
    found = described().renamed(lambda types: {f"language_model.{name}": kind for name, kind in types.items()})
    assert found.linear_type(f"language_model.{LAYER}.self_attn.qkv_proj", {}) == "W8A8"
    assert found.expert_type(f"language_model.{LAYER}.mlp.experts") == "W8A8_DYNAMIC"


@pytest.mark.parametrize(
    ("changes", "prefix", "message"),
    [
        (
            {f"{LAYER}.self_attn.k_proj.weight": "FLOAT"},
            f"{LAYER}.self_attn.qkv_proj",
            f"FILE: {LAYER}.self_attn.v_proj.weight is W8A8, {LAYER}.self_attn.k_proj.weight is FLOAT, but "
            f"{LAYER}.self_attn.qkv_proj is one layer in vLLM",
        ),
        ({}, f"{LAYER}.mlp.down_proj", f"FILE does not have {LAYER}.mlp.down_proj.weight, which the layer"),
        ({}, "model.layers.3.mlp.experts", "FILE has no expert below model.layers.3.mlp.experts"),
        (
            {f"{LAYER}.mlp.experts.1.down_proj.weight": "FLOAT"},
            f"{LAYER}.mlp.experts",
            f"{LAYER}.mlp.experts.1.down_proj.weight is FLOAT, but {LAYER}.mlp.experts is one layer in vLLM",
        ),
    ],
)
def test_layers_that_cannot_have_one_type_are_refused(changes: dict[str, str], prefix: str, message: str) -> None:
    found = described(changes)
    with pytest.raises(ModelSlimError) as error:
        found.expert_type(prefix) if prefix.endswith("experts") else found.linear_type(prefix, {})
    assert message in str(error.value)


HERE = "not supported on Ascend NPUs by this port"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{LAYER}.self_attn.q_proj.weight": "W8A16"}, f"{LAYER}.self_attn.q_proj.weight is W8A16, which is {HERE}"),
        ({f"{LAYER}.self_attn.q_proj.weight": "W4A8_DYNAMIC"}, f"q_proj.weight is W4A8_DYNAMIC, which is {HERE}"),
        (
            {f"{LAYER}.mlp.experts.0.up_proj.weight_scale_second": "W4A8_DYNAMIC"},
            "up_proj.weight_scale_second is the scale of weights quantised per group, which is",
        ),
        (
            {"group_size": 256, f"{LAYER}.mlp.experts.0.up_proj.weight": "W4A8_DYNAMIC"},
            f"group_size is 256, weights quantised per group, which is {HERE}",
        ),
        ({f"{LAYER}.mlp.experts.0.up_proj.weight": "W8A8_MXFP8"}, f"up_proj.weight is W8A8_MXFP8, which is {HERE}"),
        ({f"{LAYER}.self_attn.q_proj.weight": "W4A4_FLATQUANT_DYNAMIC"}, "is W4A4_FLATQUANT_DYNAMIC, which is"),
        ({f"{LAYER}.self_attn.fa_q.scale": "FAQuant"}, f"{LAYER}.self_attn.fa_q.scale is FAQuant, which is {HERE}"),
        ({f"{LAYER}.self_attn.q_proj.weight": "W1A1"}, "q_proj.weight is W1A1, which is"),
        ({f"{LAYER}.mlp.experts.0.up_proj.weight": "W8A8"}, "up_proj.weight is W8A8, static activations, which is"),
        ({"lm_head.weight": "W8A8_DYNAMIC"}, "lm_head.weight is W8A8_DYNAMIC; vLLM computes that in float"),
        ({f"{LAYER}.mlp.gate.weight": "W8A8"}, "mlp.gate.weight is W8A8; vLLM computes that in float"),
        ({f"{LAYER}.self_attn.kv_b_proj.weight": "W8A8"}, "kv_b_proj.weight is W8A8; vLLM computes that in float"),
        (
            {f"{LAYER}.self_attn.q_proj.left_trans": "FLOAT"},
            "q_proj.left_trans is a transform of activations (FlatQuant)",
        ),
        ({f"{LAYER}.self_attn.o_proj.clip_ratio": "FLOAT"}, "o_proj.clip_ratio is a bound on activations (FlatQuant)"),
        (
            {f"{LAYER}.self_attn.o_proj.div.mul_scale": "FLOAT"},
            "o_proj.div.mul_scale is a smooth factor on activations",
        ),
        ({f"{LAYER}.self_attn.k_proj.kv_cache_scale": "C8"}, "k_proj.kv_cache_scale is a quantised KV cache (C8)"),
        ({f"{LAYER}.input_layernorm.bias": "FLOAT"}, f"{LAYER}.input_layernorm.bias is a norm with a bias"),
        ({f"{LAYER}.input_layernorm.module.weight": "FLOAT"}, "input_layernorm.module.weight is a norm with a bias"),
        ({"kv_cache_type": "C8"}, f"kv_cache_type is C8, a quantised KV cache, which is {HERE}"),
        ({"fa_quant_type": "FAKQuant"}, "fa_quant_type is FAKQuant, quantised attention"),
    ],
)
def test_what_is_not_served_is_refused_by_tensor_and_type(changes: dict[str, str], message: str) -> None:
    found = list(problems(described(changes)))
    assert found
    assert message in found[0]
    assert "msModelSlim" in found[0], "what to do"


def test_rotated_hidden_states_are_refused_with_drafters_only() -> None:
    rotated = described(optional={"quarot": {"rotation_map": {"global_rotation": "rot.safetensors"}}})
    assert list(problems(rotated)) == []
    (problem,) = problems(rotated, drafts=True)
    assert "hidden states are rotated (QuaRot)" in problem
    assert "start without --speculative-config" in problem


def test_the_file_is_found_under_its_older_name_too(tmp_path: Path) -> None:
    assert find(str(tmp_path)) is None
    assert find("Organisation/model") is None
    older = tmp_path / "quant_model_description_w8a8_dynamic.json"
    older.write_text(json.dumps(TYPES))
    assert find(str(tmp_path)) == older
    (tmp_path / "quant_model_description_w8a8.json").write_text("{}")
    with pytest.raises(ModelSlimError, match="several ModelSlim descriptions"):
        find(str(tmp_path))
    (tmp_path / "quant_model_description.json").write_text(json.dumps({**WHOLE, **TYPES}))
    found = read(tmp_path / "quant_model_description.json")
    assert found.types == TYPES
    assert found.metadata == WHOLE


@pytest.mark.parametrize("content", ["", "[1]", '{"version": "1.0.0"}', "{"])
def test_a_file_that_describes_nothing_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "quant_model_description.json"
    path.write_text(content)
    with pytest.raises(ModelSlimError, match=r"is not a (readable )?ModelSlim description"):
        read(path)
