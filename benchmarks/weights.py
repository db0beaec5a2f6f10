# SPDX-License-Identifier: Apache-2.0
"""Bytes of weights on the device and launches of layers: quantised checkpoints against their float original, and against the
floor, the bytes of the file.

A worker without an engine loads each; then projections of attention and the experts' MLP are run once while torch's
dispatcher is watched. What the experts keep besides their weights, once they have run, counts as weights: int4 in groups
keep one buffer of zeros for all layers, which weighs as much as it would in a model of as many layers as this one has.

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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_npu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig

from tests.serve.weights_script import Loaded
from tests.support import int4_models, modelslim_models, static_w8a8_models, tiny_models, w4a8_models
from vllm_ascend_patch.core.moe.experts import ExpertWeights, expert_mlp, quantize_rows
from vllm_ascend_patch.core.stored_tensors import stored_tensors
from vllm_ascend_patch.seams.moe.method import NPUExperts

GOAL = 1.02
_CONFIG = Qwen3MoeConfig(
    **tiny_models._COMMON | {"hidden_size": 512, "num_hidden_layers": 12},
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
        device_bytes: of its tensors there, once it is loaded and has run.
        launches: operators of a layer's fused projection of attention, of its output projection, and of its experts' MLP
            with the quantisation of its rows.
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


def requested() -> int:
    """Bytes that tensors on the device take; blocks of the allocator are larger, each by up to a MiB."""
    gc.collect()
    return int(
        torch_npu.npu.memory_stats().get("requested_bytes.all.current", 0)
    )  # without a tensor yet, no statistics


@torch.inference_mode()
def measure(checkpoint: Path) -> Weights:
    before = requested()
    loaded = Loaded(str(checkpoint), "float16")
    attention = loaded.model.model.layers[0].self_attn
    launches = {}
    for name in ("qkv_proj", "o_proj"):
        layer = getattr(attention, name)
        x = torch.randn(4, layer.input_size).to("npu", torch.float16)
        with Launches() as watch:
            layer(x)
        launches[name] = watch.count
    experts = next(
        module for module in loaded.model.modules() if isinstance(getattr(module, "quant_method", 0), NPUExperts)
    )
    launches["experts"] = launches_of(experts.quant_method.weights_of(experts))
    device_bytes = requested() - before
    stored = sum(tensor.bytes for tensor in stored_tensors(checkpoint).values())
    return Weights(stored, device_bytes, launches)


def launches_of(weights: ExpertWeights) -> int:
    """Of the second run of the experts' MLP with a row for each: the first makes what is kept.

    Fused experts are given prefix sums, as MC2 has them; after the other methods one launch more makes them of counts.
    """
    rows = torch.randn(weights.num_local, weights.hidden_size).to("npu", torch.float16)
    counts = torch.ones(weights.num_local, dtype=torch.int64)
    counts = (counts.cumsum(0) if weights.fused else counts).to("npu")
    watch = Launches()
    for _ in range(2):
        watch.count = 0
        with watch:
            given, scales = quantize_rows(rows) if weights.quantized else (rows, None)
            expert_mlp(given, counts, weights, scales, weights.fused)
    return watch.count


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
        makers: dict[str, Callable[[Path], Path]] = {
            "compressed W4A16": lambda to: int4_models.make(dense, to)[0],
            "compressed W8A8": lambda to: static_w8a8_models.make(dense, to),
            "compressed W4A8": lambda to: w4a8_models.make(dense, to),
        }
        for name, export in exports.items():
            makers[f"ModelSlim, {name}"] = partial(modelslim_models.make, dense, export=export)
        for name, make in makers.items():
            (Path(folder) / name).mkdir()
            checkpoints[name] = make(Path(folder) / name)
        found = {name: measure(path) for name, path in checkpoints.items()}
    for name, weights in found.items():
        print(
            f"{name:>26}: {weights.device_bytes / 2**20:7.2f} MiB on the device, {weights.file_bytes / 2**20:7.2f} in the "
            f"file, launches {weights.launches}"
        )
    ratio = max(weights.device_bytes / weights.file_bytes for name, weights in found.items() if name != "float16")
    figures = {name: asdict(weights) for name, weights in found.items()}
    print(json.dumps({"name": "weights", "figures": figures, "ratio": round(ratio, 4), "goal": GOAL}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
