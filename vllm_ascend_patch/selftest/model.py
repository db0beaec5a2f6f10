# SPDX-License-Identifier: Apache-2.0
"""A tiny random model, made here, served by stock vLLM with the patch set on one NPU: its tokens against transformers'.

Transformers computes in float32 on the same float16 weights. A token is demanded only where transformers' own choices are
clear, of the token and of the experts: what leads is further ahead than float16 activations move it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .result import Result, attempt, require

if TYPE_CHECKING:
    import torch

PART = "model"
VOCABULARY, NEW_TOKENS, PROMPTS, TOP_K = 512, 12, 8, 4

MARGIN, ROUTING_MARGIN = 0.25, 0.02
"""Leads of a logit, and of an expert's. With float16 activations logits of 9000 positions moved by up to 0.11 where the
experts of the position were this clear, and by up to 0.63 where they were not (transformers on a CPU, three seeds)."""


def check() -> Iterator[Result]:
    """One result."""
    yield attempt(PART, "tokens of a tiny Qwen3-MoE", tokens)


def tokens() -> str:
    import torch
    import transformers

    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.15,  # logits that differ: with the usual 0.02 every choice is a near tie
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in range(4, 4 + 5 * PROMPTS, 5)]
    with tempfile.TemporaryDirectory() as folder:
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float16)
        model.save_pretrained(folder)
        oracle = model.float().eval()
        served = _serve(folder, prompts)
        compared = sum(_compare(oracle, prompt, found) for prompt, found in zip(prompts, served, strict=True))
    require(compared >= PROMPTS * NEW_TOKENS // 4, f"only {compared} choices were clear enough to be compared")
    return f"{compared} clear choices of {PROMPTS * NEW_TOKENS} tokens, all as transformers'"


def _serve(folder: str, prompts: list[list[int]]) -> list[list[int]]:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a process less to start
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="float16",
        max_model_len=512,
        max_num_seqs=8,
        gpu_memory_utilization=0.3,
        enforce_eager=True,
        seed=0,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def _compare(oracle: Any, prompt: list[int], found: list[int]) -> int:
    """How many choices of one answer are clear and right. Raises AssertionError at one that is clear and wrong."""
    import torch

    gaps: list[torch.Tensor] = []

    def note(router: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        (hidden, *_) = arguments
        ranked = (hidden.flatten(0, -2) @ router.weight.T).topk(TOP_K + 1).values
        gaps.append(ranked[:, -2] - ranked[:, -1])

    routers = [module for name, module in oracle.named_modules() if name.endswith(".gate")]
    require(len(routers) == oracle.config.num_hidden_layers, "transformers names its routers otherwise")
    hooks = [router.register_forward_pre_hook(note) for router in routers]
    try:
        with torch.inference_mode():
            logits = oracle(torch.tensor([prompt + found[:-1]])).logits[0, len(prompt) - 1 :]
    finally:
        for hook in hooks:
            hook.remove()
    best = logits.topk(2, dim=-1)
    clear = (best.values[:, 0] - best.values[:, 1] > MARGIN) & (
        torch.stack(gaps).amin(0)[len(prompt) - 1 :] > ROUTING_MARGIN
    )
    for position, token in enumerate(found):
        right = int(best.indices[position, 0])
        require(
            not bool(clear[position]) or token == right,
            f"token {position} after a prompt of {len(prompt)} is {token} instead of {right}",
        )
    return int(clear.sum())
