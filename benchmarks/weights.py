# SPDX-License-Identifier: Apache-2.0
"""Bytes of weights on the device and launches of linear layers: a ModelSlim checkpoint against its float original, and
against the floor, the bytes of the file.

A worker without an engine loads both; then a projection of each is run once while torch's dispatcher is watched.

    python benchmarks/weights.py
"""

from __future__ import annotations

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=1)  # before torch, which loads torch_npu

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import argparse
import gc
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch_npu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig

from tests.serve.weights_script import Loaded
from tests.support import modelslim_models, tiny_models
from vllm_ascend_patch.core.stored_tensors import stored_tensors

GOAL = 1.02
_CONFIG = Qwen3MoeConfig(
    **tiny_models._COMMON | {"hidden_size": 512},
    head_dim=128,
    intermediate_size=512,
    moe_intermediate_size=256,
    num_experts=16,
    num_experts_per_tok=4,
    norm_topk_prob=True,
    decoder_sparse_step=1,
    mlp_only_layers=[],
)


@dataclass(frozen=True)
class Weights:
    """One checkpoint.

    Attributes:
        file_bytes: of its tensors, as stored.
        device_bytes: allocated by loading it.
        launches: operators of a layer's fused projection of attention, and of its output projection.
    """

    file_bytes: int
    device_bytes: int
    launches: dict[str, int]


class Launches(TorchDispatchMode):
    """Counts the operators that launch something on the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        views = aliases and result.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()
        self.count += not views and not str(func).startswith(("aten.empty", "aten.new_empty"))
        return result


def allocated() -> int:
    gc.collect()
    return int(torch_npu.npu.memory_allocated())


@torch.inference_mode()
def measure(checkpoint: Path) -> Weights:
    before = allocated()
    loaded = Loaded(str(checkpoint), "float16")
    device_bytes = allocated() - before
    attention = loaded.model.model.layers[0].self_attn
    launches = {}
    for name in ("qkv_proj", "o_proj"):
        layer = getattr(attention, name)
        x = torch.randn(4, layer.input_size).to("npu", torch.float16)
        with Launches() as watch:
            layer(x)
        launches[name] = watch.count
    stored = sum(tensor.bytes for tensor in stored_tensors(checkpoint).values())
    return Weights(stored, device_bytes, launches)


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    tiny_models.CONFIGS["weights"] = _CONFIG
    with tempfile.TemporaryDirectory() as folder:
        dense = tiny_models.make("weights", Path(folder))
        exports = {
            "static attention": modelslim_models.Export(),
            "int4 experts": modelslim_models.Export(experts="W4A8_DYNAMIC"),
            "dynamic": modelslim_models.Export(attention="W8A8_DYNAMIC"),
        }
        checkpoints = {"float16": dense}
        for name, export in exports.items():
            (Path(folder) / name).mkdir()
            checkpoints[name] = modelslim_models.make(dense, Path(folder) / name, export)
        found = {name: measure(path) for name, path in checkpoints.items()}
    for name, weights in found.items():
        print(
            f"{name:>18}: {weights.device_bytes / 2**20:7.2f} MiB on the device, {weights.file_bytes / 2**20:7.2f} in the "
            f"file, launches {weights.launches}"
        )
    ratio = max(weights.device_bytes / weights.file_bytes for name, weights in found.items() if name != "float16")
    figures = {name: asdict(weights) for name, weights in found.items()}
    print(json.dumps({"name": "weights", "figures": figures, "ratio": round(ratio, 4), "goal": GOAL}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
