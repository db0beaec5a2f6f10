# SPDX-License-Identifier: Apache-2.0
"""Which tokens of an engine's answers another model, of the same weights, decides clearly, and how.

For models that differ from the engine by more than its rounding: over a whole answer they part sooner or later where a
choice is close, so each token is judged after the engine's own tokens before it. A choice is clear by its logits, and by
those of the routers: a token that goes to other experts is another token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from .routing_margins import RoutingMargins

# Above what int8 activations change in the models of latent_models.py, where experts stay the same (measured, over 10,000
# tokens: 0.21 between the best two logits), and in their routers' scores (0.041).
MARGIN = 0.3
ROUTING_MARGIN = 0.05


@torch.inference_mode()
def clear_tokens(
    checkpoint: Path, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[list[int | None]]:
    """For every token of ``answers`` the one that the model in float32 chooses in its place; None where it is not clear."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    found: list[list[int | None]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with RoutingMargins(model) as routing:
            logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        best = logits.topk(2)
        clear = (best.values[:, 0] - best.values[:, 1] >= MARGIN) & (routing.smallest[-len(answer) :] >= ROUTING_MARGIN)
        found.append([token if sure else None for token, sure in zip(best.indices[:, 0].tolist(), clear, strict=True)])
    return found
