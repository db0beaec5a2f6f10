# SPDX-License-Identifier: Apache-2.0
"""What a family is: a tiny model of an architecture, and how it is served and judged. Builds and runs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

VOCABULARY = 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Of most models; each family adds its own peculiarities and keeps the proportions small."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tiny model with random weights.

    Attributes:
        architectures: of vLLM's registry, whose row this is; the first stands in the checkpoint's configuration.
        config: transformers' configuration class; empty for an architecture that transformers does not have: then there is
            a configuration only, and vLLM draws the weights.
        values: what the configuration is made of.
        feature: what of the model is exercised, in a few words.
        model: transformers' class that computes the reference; None for the one that belongs to the configuration.
        dtype: of weights and engine.
        query_norm: what weights of query norms are around; small where scores are not divided by the head size's root, or
            attention is so sharp that rounding decides.
        edits: what the hub's configurations have and transformers does not write.
        without: keys that transformers writes and the hub's configurations do not have.
        own_configuration: whether the hub's checkpoints bring the class of their configuration along.
        prepare: what is done to the drawn weights of transformers' model, such as rounding them to what ``rename`` packs.
        rename: the tensors as vLLM's class wants them, where transformers writes them otherwise.
        files: writes what vLLM's class reads of a checkpoint beside configuration and weights, into that folder.
        environment: variables of vLLM.
        arguments: more of the engine's.
        picture: the token that stands for a picture where prompts have one, None for text.
        around_picture: the tokens before and after it.
        layouts: names of ``layouts.py``; all by default.
        prompts: their lengths in tokens.
    """

    architectures: tuple[str, ...]
    config: str
    values: Mapping[str, Any]
    feature: str
    model: str | None = None
    dtype: str = "float16"
    query_norm: float = 1.0
    edits: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    own_configuration: bool = False
    prepare: Callable[[Any], None] | None = None
    rename: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    files: Callable[[Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    picture: int | None = None
    around_picture: tuple[int, int] = (0, 0)
    layouts: tuple[str, ...] = ("1 NPU", "TP 2 + EP")
    prompts: tuple[int, ...] = (1, 7, 40, 150, 200)

    @property
    def digest(self) -> str:
        """Of everything that a checkpoint is made of, so that one of an earlier definition is not taken for it."""
        return hashlib.sha256(repr(replace(self, prepare=None, rename=None, files=None)).encode()).hexdigest()[:8]

    @property
    def referenced(self) -> bool:
        """Whether transformers computes the same; without, tokens are not judged."""
        return bool(self.config)
