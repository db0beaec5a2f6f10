# SPDX-License-Identifier: Apache-2.0
"""What of a model decides whether it can be served, read from its configuration. No torch, no device, no vLLM.

Only reads: ``model_support.py`` judges what was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .latent_support import LatentSizes
from .moe.model_facts import has_experts
from .weight_formats import WeightFormat

FLOAT_DTYPES = ("bfloat16", "float16")
"""What a model can be served in."""

_ALIBI = ("BloomForCausalLM",)  # whatever their configuration says
_SINKS = ("GptOssForCausalLM", "GraniteMoeSWAForCausalLM", "GraniteSWAForCausalLM")
# They let vLLM's expert runner apply the factor and do not undo what it does in float16, A.X-K1 since a norm stands between;
# other models do.
_FACTOR_IN_RUNNER = (
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "Glm4vMoeForConditionalGeneration",
    "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM",
    "LagunaForCausalLM",
    "BailingMoeV2_5ForCausalLM",
    "AXK1ForCausalLM",
)

LATENT_ALWAYS = ("SarvamMLAForCausalLM",)
"""Models with latent attention that vLLM does not count among those with it, so that nothing switches it off."""

WINDOW_KEYS = ("sliding_window", "sliding_windows", "interleaved_sliding_window")
"""Where configurations keep sliding windows: one size, or one per layer."""

_STATE_KINDS = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "kda")
_ATTENDING = frozenset({"attention", "full_attention", "sliding_attention", "chunked_attention", "moe", "mlp"})
_STATE_KEYS = {
    "linear_num_value_heads": "linear_attention",
    "linear_attn_config": "linear_attention",
    "mamba_d_state": "mamba",
    "ssm_state_size": "mamba",
    "conv_L_cache": "conv",
}
_SHARED = (
    "n_shared_experts",
    "num_shared_experts",
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
)


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """What of a model decides whether it is served. Sizes are the whole model's; 0, None or empty where not known.

    Attributes:
        name: as the user gave it.
        architecture: the class name in the configuration.
        dtype: of the activations, as in ``str(torch.dtype)`` without the prefix.
        max_model_len: most tokens of a request.
        vocab_size: tokens in the vocabulary.
        num_heads: query heads.
        num_kv_heads: key-value heads.
        head_size: elements of a head.
        experts: whether there are routed experts.
        expert_size: intermediate size of an expert.
        activation: of the MLPs.
        routed_scale: the factor on the routed experts' sum.
        shared_experts: whether there are shared experts.
        latent: multi-head latent attention (MLA) is computed as such.
        latent_sizes: of MLA, where the configuration has it.
        index_top_k: tokens that sparse attention looks at.
        windows: sizes of sliding windows, smallest first.
        window_head_size: elements of a head of the layers that have them; other layers' may differ.
        states: kinds of layers that keep a state in place of keys and values.
        sinks: attention sinks.
        soft_cap: the bound that attention logits are capped to.
        alibi: attention logits with linear biases (ALiBi).
        encoder_decoder: an encoder beside the decoder.
        prefix_lm: prompts of which a part attends in both directions.
        weights: the format that the checkpoint names, None for none.
        output_bias: the output projection (lm_head) has a bias.
        clip_qkv: the bound that queries, keys and values are clamped to.
        zero_experts: experts that return their input, or nothing.
    """

    name: str
    architecture: str = ""
    dtype: str | None = None
    max_model_len: int | None = None
    vocab_size: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_size: int = 0
    experts: bool = False
    expert_size: int = 0
    activation: str = ""
    routed_scale: float = 1.0
    shared_experts: bool = False
    latent: bool = False
    latent_sizes: LatentSizes | None = None
    index_top_k: int | None = None
    windows: tuple[int, ...] = ()
    window_head_size: int = 0
    states: tuple[str, ...] = ()
    sinks: bool = False
    soft_cap: float | None = None
    alibi: bool = False
    encoder_decoder: bool = False
    prefix_lm: bool = False
    weights: WeightFormat | None = None
    output_bias: bool = False
    clip_qkv: float | None = None
    zero_experts: int = 0

    @property
    def windows_bind(self) -> bool:
        """Whether a request can be longer than a sliding window."""
        if not self.windows:
            return False
        return self.max_model_len is None or min(self.windows) < self.max_model_len

    @property
    def divides_shared_experts(self) -> bool:
        """Whether vLLM's expert runner, where it applies the factor, gives wrong sums: in float16 it divides the shared
        experts' output in place of multiplying the routed one, and leaves it to the model to compensate."""
        scaled = self.routed_scale != 1.0 and self.shared_experts and self.dtype == "float16"
        return scaled and self.architecture in _FACTOR_IN_RUNNER


def traits_of(name: str, config: Mapping[str, Any], mla_disabled: bool = False) -> ModelTraits:
    """Read a parsed ``config.json``, or what transformers makes of it. ``mla_disabled``: ``VLLM_MLA_DISABLE`` is on.

    ``max_model_len`` is the configuration's number of positions; ``dtype`` stays None where vLLM would convert it.
    """
    text = {**config, **(config.get("text_config") or {})}
    architectures = config.get("architectures") or text.get("architectures") or [""]
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "").removeprefix("torch.")
    heads = _size(text, "num_attention_heads")
    latent = _size(text, "kv_lora_rank") > 0
    if latent:
        head_size, kv_heads = _size(text, "qk_nope_head_dim") + _size(text, "qk_rope_head_dim"), heads
    else:
        head_size = _size(text, "head_dim") or (_size(text, "hidden_size") // heads if heads else 0)
        kv_heads = _size(text, "num_key_value_heads") or heads
    kinds = text.get("layer_types") or ()
    return ModelTraits(
        name=name,
        architecture=architectures[0],
        dtype=dtype if dtype in FLOAT_DTYPES else None,
        max_model_len=_size(text, "max_position_embeddings") or None,
        vocab_size=_size(text, "vocab_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        experts=has_experts(config),
        expert_size=_size(text, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"),
        activation=str(text.get("mlp_hidden_act") or text.get("hidden_act") or text.get("hidden_activation") or ""),
        routed_scale=float(text.get("routed_scaling_factor") or text.get("moe_routed_scaling_factor") or 1.0),
        shared_experts=_size(text, *_SHARED) > 0,
        latent=latent and (not mla_disabled or architectures[0] in LATENT_ALWAYS),
        latent_sizes=_latent_sizes(text) if latent else None,
        index_top_k=_size(text, "index_topk") or None,
        windows=() if kinds and "sliding_attention" not in kinds else _windows(text),
        window_head_size=head_size,
        states=_states(text),
        sinks=architectures[0] in _SINKS and bool(text.get("attention_sinks", True)),
        soft_cap=text.get("attn_logit_softcapping"),
        alibi=_alibi(architectures[0], text),
        encoder_decoder=bool(config.get("is_encoder_decoder")),
        output_bias=bool(text.get("lm_head_bias")),
        clip_qkv=text.get("clip_qkv"),
        zero_experts=_size(text, "zero_expert_num"),
        weights=WeightFormat.of(text, _size(text, "num_hidden_layers"), has_experts(config)),
    )


def attends_throughout(config: Mapping[str, Any]) -> bool:
    """Whether the configuration names the kind of every layer, and none of them keeps a state, whatever its class can."""
    kinds: Any = config.get("layer_types") or config.get("layers_block_type") or ()
    return bool(kinds) and set(kinds) <= _ATTENDING


def _size(config: Mapping[str, Any], *keys: str) -> int:
    found = (config.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)


def _latent_sizes(config: Mapping[str, Any]) -> LatentSizes:
    return LatentSizes(
        rank=_size(config, "kv_lora_rank"),
        rope=_size(config, "qk_rope_head_dim"),
        nope=_size(config, "qk_nope_head_dim"),
        value=_size(config, "v_head_dim"),
    )


def _alibi(architecture: str, config: Mapping[str, Any]) -> bool:
    if architecture in ("BaichuanForCausalLM", "BaiChuanForCausalLM"):
        return _size(config, "hidden_size") != 4096  # the smaller one rotates
    attention = config.get("attn_config") or {}
    said = config.get("alibi") or config.get("position_embedding_type") == "alibi"
    return architecture in _ALIBI or bool(said or (isinstance(attention, Mapping) and attention.get("alibi")))


def _windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    if config.get("use_sliding_window") is False:
        return ()
    found: list[Any] = []
    for key in WINDOW_KEYS:
        value = config.get(key)
        found += value if isinstance(value, list | tuple) else [value]
    return tuple(sorted({size for size in found if isinstance(size, int) and size > 0}))


def _states(config: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if kinds:
        found = {kind for kind in kinds if kind in _STATE_KINDS}
        if "linear_attention" in found and ("mamba_n_heads" in config or "mamba_num_heads" in config):
            found = found - {"linear_attention"} | {"mamba"}  # transformers 5 calls Mamba's layers so
        return tuple(sorted(found))
    if "M" in str(config.get("hybrid_override_pattern") or "") or 0 in (config.get("attn_type_list") or ()):
        return ("mamba",) if "hybrid_override_pattern" in config else ("linear_attention",)
    return tuple(sorted({kind for key, kind in _STATE_KEYS.items() if config.get(key)}))
