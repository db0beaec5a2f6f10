# SPDX-License-Identifier: Apache-2.0
"""Whether a model can be served on Ascend NPUs by this port: one message for each reason against it.

A start and the ``plan`` command ask the same functions, so they give one answer. Each message says what was found, what is
supported and what to do. No torch, no device, no vLLM; options that no model decides about are judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import latent_support, weight_formats
from .model_traits import FLOAT_DTYPES, ModelTraits
from .operator_limits import (
    HEAD_SIZE_MULTIPLE,
    MAX_BAND_HEAD_SIZE,
    MAX_GROUP,
    MAX_HEAD_SIZE,
    MAX_KV_ROW,
    MAX_QUERY_HEADS,
    MAX_QUERY_ROW,
    SINK_HEAD_SIZES,
    TND_HEAD_SIZE,
)

_HERE = "on Ascend NPUs by this port"

# Models of vLLM that choose their kernels themselves, so that no platform is asked.
_OWN_KERNELS = {
    **dict.fromkeys(
        ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "MiMoV2OmniForCausalLM"),
        "attention whose values have another head size than its keys, on a backend that the model chooses",
    ),
    "PanguProMoEV2ForCausalLM": "attention with static sinks, on a backend that the model chooses",
    **dict.fromkeys(
        ("InklingForCausalLM", "InklingForConditionalGeneration"),
        "attention with convolution states, on a backend that the model chooses",
    ),
    **dict.fromkeys(
        ("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"),
        "sparse attention on a backend that the model chooses",
    ),
}
_OWN_EXPERTS = ("MiniCPMForCausalLM", "Moondream3ForCausalLM", "HfMoondream")
_LATENT_SERVED = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "MistralLarge3ForCausalLM",
    "AXK1ForCausalLM",
    "KimiK25ForConditionalGeneration",
)
_GATED_DELTA = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
"""Models whose states are those of gated DeltaNet."""
_BY_DIFFUSION = ("DiffusionGemmaForBlockDiffusion",)
_OUTPUT_BIAS_DROPPED = ("PhiMoEForCausalLM", "PhimoeForCausalLM")
_OTHER_ACTIVATIONS = ("relu", "situ")
_WINDOW_IS_NEEDED = ("Cohere2MoeForCausalLM",)  # computes with it, so it cannot be taken away
_VOCABULARY_PADDING = 64  # vLLM rounds the vocabulary up to a multiple of it before it is divided


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How a model is divided: tensor- and data-parallel ranks, and whether whole experts are distributed over them."""

    tp_size: int = 1
    dp_size: int = 1
    expert_parallel: bool = False


def problems(model: ModelTraits, parallel: Parallelism | None = None) -> list[str]:
    """Why the model is not served, one message each; empty when it is. What no setting mends comes first."""
    checks: tuple[Callable[[ModelTraits], str | None], ...] = (
        _own_kernels,
        _encoder,
        _diffusion,
        _state_layers,
        _upstreams_faults,
        _zero_experts,
        _sparse_attention,
        latent_attention,
        lambda model: weight_formats.problem(model.name, model.architecture, model.weights),
        _sinks,
        _soft_cap,
        _alibi,
        _prefix,
        _activation,
        _window,
        lambda model: None if model.dtype is None else dtype_problem(model.dtype),
        _float16,
    )
    found = [check(model) for check in checks]
    if parallel is not None:
        found += [
            check(model, parallel)
            for check in (_division, _expert_slices, _int4_experts, _mxfp4_experts, _int4_attention, _heads)
        ]
    return [problem for problem in found if problem is not None]


def latent_attention(model: ModelTraits) -> str | None:
    """Multi-head latent attention that is not served, and how to do without where vLLM has a plain form of it."""
    if not model.latent:
        return None
    if model.architecture not in _LATENT_SERVED:
        what = f"multi-head latent attention (MLA) of {model.architecture or 'this model'} is not supported {_HERE}"
    elif model.latent_sizes is None:
        return None
    else:
        limit = latent_support.problem(model.latent_sizes, 1)
        if limit is None:
            return None
        what = f"multi-head latent attention (MLA) with {limit} on Ascend NPUs (npu_fused_infer_attention_score)"
    return f"{model.name}: {what}. " + mla_remedy(model)


def latent_release_problem(model: ModelTraits, obstacle: str | None) -> str | None:
    """Latent attention with a release that does not serve it; ``obstacle`` says why, and which does."""
    if not model.latent or obstacle is None:
        return None
    return (
        f"{model.name}: multi-head latent attention (MLA) is not supported {_HERE}: {obstacle}. Install that or a newer "
        f"one, or do without. {mla_remedy(model)}"
    )


def mla_remedy(model: ModelTraits) -> str:
    """What to do with a model whose latent attention is not served."""
    if model.architecture in _LATENT_SERVED:
        return "Set VLLM_MLA_DISABLE=1 to serve this model with plain attention, for a KV cache many times as large."
    return f"Models of {', '.join(_LATENT_SERVED)} are. Choose another model."


def dtype_problem(dtype: str) -> str | None:
    """What is wrong with ``dtype``, a name without the prefix ``torch.``; None where it is served."""
    if dtype in FLOAT_DTYPES:
        return None
    return (
        f"dtype {dtype} cannot be served on Ascend NPUs: npu_fused_infer_attention_score takes bfloat16 and float16. "
        "Start with --dtype bfloat16 or --dtype float16."
    )


def heads_problem(head_size: int, num_heads: int, num_kv_heads: int) -> str | None:
    """The limit of the attention operator that these heads break (counts are per rank); None where they are served."""
    problem = None
    if head_size % HEAD_SIZE_MULTIPLE or not 0 < head_size <= MAX_HEAD_SIZE:
        problem = f"the head size must be a multiple of {HEAD_SIZE_MULTIPLE} and at most {MAX_HEAD_SIZE}"
    elif num_heads > MAX_QUERY_HEADS:
        problem = f"at most {MAX_QUERY_HEADS} query heads per rank are supported"
    elif num_heads % num_kv_heads or num_heads // num_kv_heads > MAX_GROUP:
        problem = f"query heads per KV head must be a whole number of at most {MAX_GROUP}"
    elif num_kv_heads * head_size > MAX_KV_ROW:
        problem = f"KV heads x head size must be at most {MAX_KV_ROW}"
    elif head_size != TND_HEAD_SIZE and num_heads * head_size > MAX_QUERY_ROW:
        problem = f"query heads x head size must be at most {MAX_QUERY_ROW} with this head size"
    if problem is None:
        return None
    return (
        f"attention with head size {head_size}, {num_heads} query heads and {num_kv_heads} KV heads per rank cannot be "
        f"served on Ascend NPUs: {problem} (npu_fused_infer_attention_score). Choose another model or tensor-parallel size."
    )


def _own_kernels(model: ModelTraits) -> str | None:
    what = _OWN_KERNELS.get(model.architecture)
    if what is not None:
        return (
            f"{model.name}: {what}, is not supported {_HERE}: attention runs on its own backend. Choose another model."
        )
    if model.architecture in _OWN_EXPERTS and model.experts:
        return (
            f"{model.name}: {model.architecture} runs its experts through Triton kernels of its own, which is not supported "
            f"{_HERE}: models with vLLM's MoE layer are. Choose another model."
        )
    return None


def _encoder(model: ModelTraits) -> str | None:
    if not model.encoder_decoder:
        return None
    return f"{model.name}: encoder-decoder models are not supported {_HERE}: decoders are. Choose another model."


def _diffusion(model: ModelTraits) -> str | None:
    if model.architecture not in _BY_DIFFUSION:
        return None
    return (
        f"{model.name}: generating blocks of tokens by diffusion is not supported {_HERE}: one token after another is. "
        "Choose another model."
    )


def _state_layers(model: ModelTraits) -> str | None:
    if not model.states or model.architecture in _GATED_DELTA:
        return None
    return (
        f"{model.name}: layers that keep a state in place of keys and values ({', '.join(model.states)}) are not supported "
        f"{_HERE}: those of gated DeltaNet are, as in Qwen3-Next and Qwen3.5, and models whose layers all attend. Choose "
        "another model."
    )


def state_release_problem(model: ModelTraits, obstacle: str | None) -> str | None:
    """Layers with states on a release that does not serve them; ``obstacle`` says why, and which does."""
    if not model.states or obstacle is None:
        return None
    kinds = ", ".join(model.states)
    return f"{model.name}: layers that keep a state ({kinds}) are not served: {obstacle}. Install such a release."


def _upstreams_faults(model: ModelTraits) -> str | None:
    """Models that vLLM's own code computes wrongly, on any device. A test reads that code, and fails once it is mended."""
    fault = None
    if model.architecture in _OUTPUT_BIAS_DROPPED and model.output_bias:
        fault = "vLLM leaves the bias of the output projection (lm_head_bias) out"
    elif model.architecture == "OlmoeForCausalLM" and model.clip_qkv is not None:
        fault = f"vLLM does not clamp queries, keys and values to {model.clip_qkv:g} (clip_qkv)"
    elif model.architecture == "LagunaForCausalLM":
        fault = "vLLM does not load the bias that its experts are chosen with (e_score_correction_bias)"
    elif model.architecture == "JetMoeForCausalLM":
        fault = "vLLM has no class for it, and its general one gives other tokens than transformers"
    if fault is not None:
        return f"{model.name}: {model.architecture} gives wrong results: {fault}, on any device. Choose another model."
    if model.architecture == "DbrxForCausalLM":
        return (
            f"{model.name}: {model.architecture} cannot be loaded: vLLM looks for the parameters of its experts where they "
            "were before 0.32, on any device. Choose another model."
        )
    return None


def _zero_experts(model: ModelTraits) -> str | None:
    if not model.zero_experts:
        return None
    return (
        f"{model.name}: {model.zero_experts} experts without weights (zero_expert_num, as in LongCat-Flash) are not "
        f"supported {_HERE}: experts with weights are. Choose another model."
    )


def _sparse_attention(model: ModelTraits) -> str | None:
    if model.index_top_k is None:
        return None
    return (
        f"{model.name}: sparse attention (sparse MLA, as in DeepSeek V3.2 and GLM-5), whose indexer picks "
        f"{model.index_top_k} tokens, is not supported {_HERE}: multi-head latent attention over all tokens is, as in "
        "DeepSeek V3.1, and so are multi-head and grouped-query attention. Choose such a model."
    )


def _sinks(model: ModelTraits) -> str | None:
    if not model.sinks:
        return None
    if model.dtype not in (None, "bfloat16"):
        return (
            f"{model.name}: attention sinks in {model.dtype} are not supported {_HERE}: in bfloat16 they are. Start with "
            "--dtype bfloat16."
        )
    if model.head_size not in (0, *SINK_HEAD_SIZES):
        sizes = " and ".join(map(str, SINK_HEAD_SIZES))
        return (
            f"{model.name}: attention sinks with head size {model.head_size} are not supported {_HERE}: with head sizes "
            f"{sizes} they are. Choose another model."
        )
    return None


def _soft_cap(model: ModelTraits) -> str | None:
    if not model.soft_cap:
        return None
    return (
        f"{model.name}: attention logits capped at {model.soft_cap:g} (attn_logit_softcapping) are not supported {_HERE}: "
        "uncapped ones are. Choose another model."
    )


def _prefix(model: ModelTraits) -> str | None:
    if not model.prefix_lm:
        return None
    return (
        f"{model.name}: attention in both directions over a part of the prompt is not supported {_HERE}: causal attention "
        "is. Choose another model."
    )


def _activation(model: ModelTraits) -> str | None:
    if not (model.experts and model.activation.startswith(_OTHER_ACTIVATIONS)) or model.activation == "relu2":
        return None
    return (
        f"{model.name}: experts with the activation {model.activation} are not supported {_HERE}: SwiGLU (silu), clamped or "
        "not, GELU and squared ReLU are. Choose another model."
    )


def _alibi(model: ModelTraits) -> str | None:
    if not model.alibi:
        return None
    return (
        f"{model.name}: attention logits with linear biases (ALiBi) are not supported {_HERE}: rotary embeddings are, and "
        "none. Choose another model."
    )


def _window(model: ModelTraits) -> str | None:
    size = model.window_head_size
    if not keeps_windows(model) or size <= MAX_BAND_HEAD_SIZE:
        return None
    return (
        f"{model.name}: sliding-window attention over {min(model.windows)} tokens with head size {size} is not supported "
        f"{_HERE}: with head sizes up to {MAX_BAND_HEAD_SIZE} it is. {_without_window(model)}"
    )


def keeps_windows(model: ModelTraits) -> bool:
    """Whether layers attend through windows: a window that no request outgrows is taken away where that changes nothing."""
    return model.windows_bind or (bool(model.windows) and model.architecture in _WINDOW_IS_NEEDED)


def cann_problem(model: ModelTraits, reason: str) -> str:
    """Windows or sinks that the installed CANN does not take; ``reason`` is what it said to a call."""
    features = [f"sliding-window attention over {min(model.windows)} tokens"] if keeps_windows(model) else []
    features += ["attention sinks"] if model.sinks else []
    remedy = "Choose another model." if model.sinks else _without_window(model)
    return (
        f"{model.name}: {' and '.join(features)} cannot be served by the installed CANN ({reason}): CANN 9.1 takes it. "
        f"Install that or a newer one, or do without. {remedy}"
    )


def _without_window(model: ModelTraits) -> str:
    if model.architecture in _WINDOW_IS_NEEDED:
        return "Choose another model."
    smallest = min(model.windows)
    return f"Start with --max-model-len {smallest} or less, where the window hides nothing, or choose another model."


def _float16(model: ModelTraits) -> str | None:
    if not model.divides_shared_experts:
        return None
    return (
        f"{model.name}: float16 gives wrong results with routed_scaling_factor {model.routed_scale:g} and shared experts: "
        f"vLLM divides the output of the latter by it, and {model.architecture} does not compensate. bfloat16 is supported: "
        "start with --dtype bfloat16."
    )


def _division(model: ModelTraits, parallel: Parallelism) -> str | None:
    broken = _indivisible(model, parallel.tp_size)
    if not broken:
        return None
    most = model.num_heads or 64
    sizes = [str(size) for size in range(1, most + 1) if not _indivisible(model, size)]
    return (
        f"--tensor-parallel-size {parallel.tp_size} does not divide {' and '.join(broken)} of {model.name}: vLLM divides "
        f"these evenly. Sizes that do: {', '.join(sizes)}."
    )


def _indivisible(model: ModelTraits, tp: int) -> list[str]:
    """What of the model ``tp`` ranks cannot share evenly, in words."""
    found = []
    if model.num_heads % tp:
        found.append(f"the {model.num_heads} attention heads")
    kv_heads = model.num_kv_heads
    if kv_heads and (kv_heads % tp if kv_heads >= tp else tp % kv_heads):
        found.append(f"the {kv_heads} KV heads")
    padded = -(-model.vocab_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    if padded % tp:
        found.append(f"the vocabulary of {padded} (padded)")
    return found


def _expert_slices(model: ModelTraits, parallel: Parallelism) -> str | None:
    ranks = parallel.tp_size * parallel.dp_size
    if not model.experts or parallel.expert_parallel or model.expert_size % ranks == 0:
        return None
    return (
        f"{parallel.tp_size} x {parallel.dp_size} ranks (tensor x data parallel) do not divide the experts' intermediate "
        f"size of {model.expert_size} of {model.name}: without expert parallelism vLLM gives each rank an equal slice of "
        "every expert. Add --enable-expert-parallel, or take a number of ranks that divides it."
    )


def _int4_experts(model: ModelTraits, parallel: Parallelism) -> str | None:
    experts = None if model.weights is None else model.weights.experts
    if experts is None or not experts.w4a16 or parallel.expert_parallel:
        return None
    ranks, size = parallel.tp_size * parallel.dp_size, experts.weights.group_size
    if not size or model.expert_size // ranks % size == 0:
        return None
    return (
        f"{ranks} ranks (tensor x data parallel) give each {model.expert_size // ranks} of the {model.expert_size} inputs "
        f"of the experts' down projection of {model.name}, whose int4 weights have a scale for {size} inputs each: only "
        "whole groups are supported. Add --enable-expert-parallel, or take fewer ranks."
    )


def _mxfp4_experts(model: ModelTraits, parallel: Parallelism) -> str | None:
    if model.weights is None or not model.weights.mxfp4 or parallel.expert_parallel:
        return None
    ranks, size, group = parallel.tp_size * parallel.dp_size, model.expert_size, weight_formats.MXFP4_GROUP
    if size // ranks % group == 0:
        return None
    return (
        f"{ranks} ranks (tensor x data parallel) give each {size // ranks} of the experts' intermediate size of {size} of "
        f"{model.name}, whose mxfp4 weights have a scale for {group} of it each: only whole groups are supported. Add "
        "--enable-expert-parallel, or take fewer ranks."
    )


def mxfp4_release_problem(model: ModelTraits, obstacle: str | None) -> str | None:
    """mxfp4 weights with a release that does not serve them; ``obstacle`` says why, and which does."""
    if model.weights is None or not model.weights.mxfp4 or obstacle is None:
        return None
    return f"{model.name}: {obstacle}. Install such a release, or take a bfloat16 checkpoint of this model."


def _int4_attention(model: ModelTraits, parallel: Parallelism) -> str | None:
    attention = None if model.weights is None else model.weights.attention
    if attention is None or not attention.w4a16 or not attention.weights.group_size:
        return None
    width = model.latent_sizes.value if model.latent_sizes is not None else model.head_size
    inputs, size = model.num_heads * width // parallel.tp_size, attention.weights.group_size
    if inputs % size == 0:
        return None
    return (
        f"--tensor-parallel-size {parallel.tp_size} gives each rank {inputs} of the {model.num_heads * width} inputs of "
        f"attention's output projection of {model.name}, whose int4 weights have a scale for {size} inputs each: only whole "
        "groups are supported. Take fewer tensor parallel ranks, and data parallel ones instead."
    )


def _heads(model: ModelTraits, parallel: Parallelism) -> str | None:
    tp = parallel.tp_size
    if model.latent and model.latent_sizes is not None:
        return _latent_heads(model, model.latent_sizes, parallel)
    if not (model.head_size and model.num_heads and model.num_kv_heads) or model.latent:
        return None
    return heads_problem(model.head_size, max(model.num_heads // tp, 1), max(model.num_kv_heads // tp, 1))


def _latent_heads(model: ModelTraits, sizes: latent_support.LatentSizes, parallel: Parallelism) -> str | None:
    limit = latent_support.problem(sizes, max(model.num_heads // parallel.tp_size, 1))
    if limit is None:
        return None
    return (
        f"{model.name}: multi-head latent attention (MLA) with {limit} on Ascend NPUs (npu_fused_infer_attention_score). "
        "Raise --tensor-parallel-size."
    )
