# SPDX-License-Identifier: Apache-2.0
"""Tiny random-weight MoE models of three families, and prompts whose greedy continuation is clear-cut.

The engine computes in float16 on float16 weights, transformers in float32 on the same weights. A token may therefore only
be demanded where the oracle's choice is not a matter of rounding: prompts are picked, from many random ones, by the
oracle's own margins, before any engine has run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeHybridConfig,
    Llama4TextConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from .routing_margins import RoutingMargins

VOCABULARY = 512
NEW_TOKENS = 24
# A little above the largest error that float16 activations make in these models' logits (0.04, measured).
MARGIN = 0.05
# The same of the scores that experts are chosen by (0.0014, measured), where routers are those of routing_margins.py.
ROUTING_MARGIN = 0.002

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, PretrainedConfig] = {
    # softmax over the top 2 of 8; head size 32
    "mixtral": MixtralConfig(
        **_COMMON, head_dim=32, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    ),
    # softmax, then top 4 of 8 renormalised; head size 128, which takes the other attention layout
    "qwen3_moe": Qwen3MoeConfig(
        **_COMMON,
        head_dim=128,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    # softmax, top 2 of 8 not renormalised, and a gated shared expert; head size 16
    "qwen2_moe": Qwen2MoeConfig(
        **_COMMON,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
}

# Hidden size 1024, the smallest that the dispatch/combine operators take on A3.
WIDE: dict[str, PretrainedConfig] = {
    # experts whose sizes int4 weights can have on up to two ranks: multiples of 256
    "qwen3_moe_int4": Qwen3MoeConfig(
        **_COMMON | {"hidden_size": 256},
        head_dim=128,
        intermediate_size=64,
        moe_intermediate_size=512,
        num_experts=8,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "qwen2_moe_wide": Qwen2MoeConfig(
        **_COMMON | {"hidden_size": 1024},
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "mixtral_wide": MixtralConfig(
        **_COMMON | {"hidden_size": 1024},
        head_dim=32,
        intermediate_size=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    # one layer whose experts' buffers take more memory than anything else of a step
    "mixtral_wide_experts": MixtralConfig(
        **_COMMON | {"hidden_size": 1024, "num_hidden_layers": 1, "max_position_embeddings": 4096},
        head_dim=32,
        intermediate_size=4096,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
}

# What attention meets besides rotary embeddings and one mask for all layers.
FORMS: dict[str, PretrainedConfig] = {
    # no rotary embedding and no norm of queries: attention is given slices of the fused projection
    "granite_nope": GraniteMoeHybridConfig(
        **_COMMON,
        intermediate_size=32,
        shared_intermediate_size=32,
        num_local_experts=8,
        num_experts_per_tok=4,
        layer_types=["attention", "attention"],
        position_embedding_type="nope",
        attention_multiplier=0.25,
        mamba_n_heads=8,
        mamba_d_head=16,
    ),
    # three layers that see their chunk of 128 tokens alone, and one that sees all, without rotary embedding
    "llama4": Llama4TextConfig(
        **_COMMON | {"num_hidden_layers": 4},
        head_dim=32,
        intermediate_size=64,
        intermediate_size_mlp=64,
        num_experts_per_tok=1,
        num_local_experts=8,
        interleave_moe_layer_step=1,
        attention_chunk_size=128,
        floor_scale=32,
    ),
    # windows so small that one key more or less changes tokens
    "mixtral_window": MixtralConfig(
        **_COMMON, head_dim=32, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2, sliding_window=6
    ),
    # so few layers that each one's share of a small device is more than 4 GiB
    "mixtral_one_layer": MixtralConfig(
        **_COMMON | {"num_hidden_layers": 1},
        head_dim=32,
        intermediate_size=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
}


def _config(name: str, **values: Any) -> PretrainedConfig | None:
    """A configuration of a class that older transformers have not; None there."""
    made = getattr(transformers, name, None)
    return None if made is None else made(**values)


_NEWER: dict[str, PretrainedConfig | None] = {
    # sinks in all layers, windows in two of three; head size 64
    "granite_sinks": _config(
        "GraniteMoeSWAConfig",
        **_COMMON | {"hidden_size": 256, "num_hidden_layers": 3},
        intermediate_size=32,
        num_local_experts=8,
        num_experts_per_tok=4,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        attention_multiplier=0.125,
    ),
    # biases of experts and router, interleaved and clamped gates, between layers with sinks and windows; head size 64
    "gpt_oss": _config(
        "GptOssConfig",
        **_COMMON,
        head_dim=64,
        intermediate_size=64,
        num_local_experts=8,
        num_experts_per_tok=4,
        sliding_window=6,
    ),
    # states in place of keys and values in three of four layers (gated DeltaNet), two value heads to a key head
    "qwen3_next": _config(
        "Qwen3NextConfig",
        **_COMMON | {"num_hidden_layers": 4},
        head_dim=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    # GELU in experts and beside them, windows in one of two layers, and heads of another size in the other
    "gemma4": _config(
        "Gemma4TextConfig",
        **_COMMON | {"tie_word_embeddings": True},
        head_dim=32,
        global_head_dim=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=0,
    ),
}
FORMS |= {family: config for family, config in _NEWER.items() if config is not None}


@dataclass(frozen=True)
class Case:
    """One prompt and the tokens that transformers continues it with, in float32, greedily."""

    prompt: list[int]
    answer: list[int]


def path_of(family: str, folder: Path, seed: int = 11) -> Path:
    """Where ``make`` puts a checkpoint."""
    return folder / (family if seed == 11 else f"{family}-{seed}")


BFLOAT16 = ("granite_sinks", "gpt_oss")
"""Families whose checkpoints are bfloat16: the operators take sinks in no other dtype."""
BFLOAT16_MARGIN = 0.15


def make(family: str, folder: Path, seed: int = 11) -> Path:
    """Write the checkpoint (safetensors, float16 but for ``BFLOAT16``) of ``family`` below ``folder`` and return its path.

    Another ``seed`` is another checkpoint of the same model.
    """
    path = path_of(family, folder, seed)
    if (path / "config.json").exists():
        return path
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config((CONFIGS | WIDE | FORMS)[family], torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings  # large embeddings would then only repeat each token
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                fan_in = weight.shape[-1]
                scale = (
                    (0.05 if tied else 1.0)
                    if "embed" in name
                    else fan_in**-0.5 * (2.0 if "lm_head" in name or "gate." in name else 1.0)
                )
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            elif "sinks" in name or name.endswith("router.bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    model.to(torch.bfloat16 if family in BFLOAT16 else torch.float16).save_pretrained(path)
    return path


def few_cases(checkpoint: Path, lengths: Sequence[int] = (5, 12, 19)) -> list[Case]:
    """A prompt of each length with an answer of eight tokens, quickly found, for tests that need several checkpoints."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(9)
    margin = BFLOAT16_MARGIN if checkpoint.name in BFLOAT16 else MARGIN
    return [_clear_case(model, [], length, generator, tokens=8, margin=margin) for length in lengths]


def cases(checkpoint: Path) -> list[Case]:
    """Eight prompts of 1 to 300 tokens with their answers; the last two share a prefix of two KV blocks."""
    cached = checkpoint / "cases.json"
    if cached.exists():
        return [Case(**case) for case in json.loads(cached.read_text())]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    prefix = torch.randint(3, VOCABULARY, (256,), generator=generator).tolist()
    chosen = [_clear_case(model, [], length, generator) for length in (1, 7, 16, 33, 64, 150)]
    chosen += [_clear_case(model, prefix, length, generator) for length in (9, 44)]
    cached.write_text(json.dumps([case.__dict__ for case in chosen]))
    return chosen


def _clear_case(
    model: torch.nn.Module,
    prefix: list[int],
    length: int,
    generator: torch.Generator,
    tokens: int = NEW_TOKENS,
    margin: float = MARGIN,
) -> Case:
    for _ in range(1000):
        prompt = prefix + torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        answer, smallest = greedy(model, prompt, tokens, margin)
        if smallest >= margin:
            return Case(prompt, answer)
    raise RuntimeError(f"no prompt of length {len(prefix) + length} has a margin of {margin}")


@torch.inference_mode()
def greedy(
    model: torch.nn.Module, prompt: list[int], length: int = NEW_TOKENS, margin: float = MARGIN
) -> tuple[list[int], float]:
    """The greedy continuation and the smallest gap between first and second logit on the way; stops below ``margin``.

    The gap is 0 where a token's experts are chosen by less than ROUTING_MARGIN.
    """
    tokens = torch.tensor([prompt])
    past, answer, smallest = None, [], float("inf")
    for _ in range(length):
        with RoutingMargins(model) as routing:
            output = model(tokens, past_key_values=past, use_cache=True)
        past = output.past_key_values
        best = output.logits[0, -1].topk(2)
        sure = routing.smallest[-1] >= ROUTING_MARGIN
        smallest = min(smallest, float(best.values[0] - best.values[1]) if sure else 0.0)
        if smallest < margin:
            break
        answer.append(int(best.indices[0]))
        tokens = best.indices[:1].unsqueeze(0)
    return answer, smallest
