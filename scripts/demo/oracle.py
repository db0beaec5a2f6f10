# SPDX-License-Identifier: Apache-2.0
"""The oracle: Hugging Face transformers judges generated tokens, on the same weights, on the CPU.

Each token is checked in its own context (the prompt and the tokens before it), so one close call does not make all that
follows incomparable. Knows nothing of vLLM.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Verdict:
    """How one answer compares: ``equal`` tokens are the oracle's own choice, ``ties`` are within the tolerance of it.

    ``wrong`` lists (position, token, oracle's token, gap in logits) for all others.
    """

    equal: int
    ties: int
    wrong: list[tuple[int, int, int, float]]


def judge(model: torch.nn.Module, prompt: list[int], answer: list[int], tolerance: float) -> Verdict:
    """Compare ``answer``'s tokens with the model's greedy choices; ``tolerance`` is in logits."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    equal, ties, wrong = 0, 0, []
    for position, (row, token) in enumerate(zip(logits, answer, strict=True)):
        best = int(row.argmax())
        gap = float(row[best] - row[token])
        if token == best:
            equal += 1
        elif gap <= tolerance:
            ties += 1
        else:
            wrong.append((position, token, best, gap))
    return Verdict(equal, ties, wrong)


def main() -> None:
    """Read ``[{"prompt": […], "answer": […]}, …]`` from standard input, write one verdict each to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tolerance", type=float, required=True)
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=getattr(torch, arguments.dtype)).eval()
    pairs = json.load(sys.stdin)
    verdicts = [asdict(judge(model, p["prompt"], p["answer"], arguments.tolerance)) for p in pairs]
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main()
