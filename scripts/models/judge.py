# SPDX-License-Identifier: Apache-2.0
"""Holds an engine's answers against transformers, token by token after the engine's own tokens before.

A token counts where the reference decides it clearly: by its logits, and by the scores that every router of it chose by.
What a router is need not be known: whoever takes the best few of a row of scores, one row per token, chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from . import checkpoints, pictures
from .families import Family


@dataclass(frozen=True)
class Bounds:
    """Of a dtype: what its rounding does not reach.

    Attributes:
        logits: between the best two of a token, to count as clear.
        routing: between the last expert chosen and the next, as a part of the row's range.
        error: the mean difference of the chosen tokens' log-probabilities.
    """

    logits: float
    routing: float
    error: float


BOUNDS = {
    "float16": Bounds(logits=0.12, routing=0.01, error=0.02),
    "bfloat16": Bounds(logits=0.4, routing=0.05, error=0.1),
}
LEAST = 0.15
"""Of all tokens, how many have to be clear for a verdict. Models with several layers of routers have few that are."""


class RouterMargins(TorchFunctionMode):
    """While entered, notes by how much each token's choices are ahead of the next, as a part of the row's range.

    Attributes:
        smallest: ``[T]``, over all choices.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.smallest = torch.full((tokens,), torch.inf)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk):
            self._note(args[0], args[1] if len(args) > 1 else kwargs["k"])
        elif func in (torch.max, torch.Tensor.max) and (len(args) > 1 or "dim" in kwargs):
            self._note(args[0], 1)
        return func(*args, **kwargs)

    def _note(self, scores: Any, count: int) -> None:
        rows = scores.shape[:-1].numel()
        if not scores.is_floating_point() or rows != len(self.smallest) or count >= scores.shape[-1]:
            return  # as of attention, which has a row for each head and token
        with torch._C.DisableTorchFunctionSubclass():
            flat = scores.detach().float().reshape(rows, -1)
            finite = flat.isfinite()
            last, following = flat.topk(count + 1).values[:, -2:].unbind(1)
            low = flat.masked_fill(~finite, torch.inf).amin(1)
            gap = (last - following) / (flat.amax(1) - low).clamp_min(1e-9)
            gap = gap.masked_fill(~(last.isfinite() & following.isfinite()), torch.inf)
            self.smallest = self.smallest.minimum(gap)


@torch.inference_mode()
def verdict(
    family: Family, folder: Path, prompts: Sequence[list[int]], answers: Sequence[Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    """What ``answers`` are worth: several for each prompt, each with ``tokens`` and their ``logprobs``."""
    model = checkpoints.reference_class(family).from_pretrained(
        folder / checkpoints.REFERENCE, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    bounds = BOUNDS[family.dtype]
    tokens = clear = wrong = 0
    errors: list[float] = []
    for number, prompt in enumerate(prompts):
        for answer in answers[number]:
            chosen = answer["tokens"]
            logits, routing = _after(model, pictures.reference_inputs(family, folder, prompt, chosen), len(chosen))
            best = logits.topk(2)
            sure = (best.values[:, 0] - best.values[:, 1] >= bounds.logits) & (routing >= bounds.routing)
            same = best.indices[:, 0] == torch.tensor(chosen)
            tokens, clear, wrong = tokens + len(chosen), clear + int(sure.sum()), wrong + int((sure & ~same).sum())
            right = logits.log_softmax(-1)[torch.arange(len(chosen)), torch.tensor(chosen)]
            differences = (right - torch.tensor(answer["logprobs"])).abs()
            errors += differences[sure].tolist()
    found: dict[str, Any] = {"tokens": tokens, "clear": clear, "wrong": wrong}
    if clear < LEAST * tokens:
        return found | {"outcome": "unclear", "why": f"{clear} of {tokens} tokens are clear"}
    error = sum(errors) / len(errors)
    found["error"] = round(error, 4)
    if wrong or error > bounds.error:
        return found | {"outcome": "wrong", "why": f"{wrong} of {clear} clear tokens differ, mean error {error:.3f}"}
    return found | {"outcome": "right"}


def _after(model: Callable[..., Any], inputs: dict[str, Any], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[n, V]`` before each of the last ``count`` tokens, and how clear the routers were there, ``[n]``."""
    with RouterMargins(inputs["input_ids"].shape[1]) as routers:
        logits = model(**inputs, use_cache=False).logits[0, -count:].float()
    return logits, routers.smallest[-count:]
