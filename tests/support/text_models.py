# SPDX-License-Identifier: Apache-2.0
"""Tiny models that read and write text, for clients: a token is a byte, and every printable byte has one clear successor.

Script: python -m tests.support.text_models HUB      (where ``import torch`` works: under the launcher)

writes a tiny model under each of ``MODELS``' names, as snapshots of a Hugging Face hub's cache. The output layer's row of a
token is the embedding of the token before it, and embeddings outweigh what layers add: no choice is a matter of rounding,
however requests are batched. Such a model shows nothing about arithmetic; tests of that use ``tiny_models.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from .processes import report

_REVISION = "0" * 40
_FIRST, _LAST = ord(" "), ord("~")
"""The printable bytes, which follow each other in a ring."""
_BOS, _EOS = 256, 257

_COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "bos_token_id": _BOS,
    "eos_token_id": _EOS,
}
_MIXTRAL = MixtralConfig(
    **_COMMON, head_dim=32, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2, sliding_window=None
)

MODELS: dict[str, PretrainedConfig] = {
    "ibm-research/PowerMoE-3b": GraniteMoeConfig(
        **_COMMON, intermediate_size=32, num_local_experts=8, num_experts_per_tok=4, attention_multiplier=0.25
    ),
    "microsoft/Phi-mini-MoE-instruct": _MIXTRAL,  # PhiMoE is refused: vLLM drops the bias of its output layer
    "hmellor/tiny-random-LlamaForCausalLM": LlamaConfig(**_COMMON, head_dim=32, intermediate_size=64),
    "Qwen/Qwen3-0.6B": Qwen3Config(**_COMMON, head_dim=32, intermediate_size=64),
}
"""The names that upstream's tests ask for, and what they get."""


def make(name: str, hub: Path) -> Path:
    """The snapshot of a model below ``hub``, a hub's cache folder; made when missing."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / _REVISION
    if not (repository / "refs" / "main").exists():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(MODELS[name], torch_dtype=torch.float32)
        with torch.no_grad():
            embeddings, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
            embeddings.copy_(torch.randn(embeddings.shape) * 4)
            output.copy_(torch.randn(output.shape) * 0.02)
            for token in range(output.shape[0]):
                output[_successor(token)] = embeddings[token] / 8 if _FIRST <= token <= _LAST else output[token]
        model.to(torch.bfloat16).save_pretrained(snapshot)
        _write_tokenizer(snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(_REVISION)
    return snapshot


def _successor(token: int) -> int:
    return token + 1 if _FIRST <= token < _LAST else _FIRST if token == _LAST else token


def continuation(text: str, length: int) -> str:
    """What a model continues a text with that ends in a printable character."""
    token, answer = ord(text[-1]), ""
    for _ in range(length):
        token = _successor(token)
        answer += chr(token)
    return answer


def _write_tokenizer(folder: Path) -> None:
    """A byte is a token with its own number."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Byte-level tokenizers write a byte as the character of its number, or as one above 255 where there is none to see.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {character: ord(character) for character in alphabet if ord(character) < 256}
    unseen = [byte for byte in range(256) if byte not in words.values()]
    words |= dict(zip([character for character in alphabet if ord(character) > 255], unseen, strict=True))
    tokenizer = Tokenizer(models.BPE(vocab=words | {"<s>": _BOS, "</s>": _EOS}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    names["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


if __name__ == "__main__":
    report({name: str(make(name, Path(sys.argv[1]))) for name in MODELS})
