# SPDX-License-Identifier: Apache-2.0
"""Script: linear layers of vLLM with the methods of ModelSlim checkpoints on an NPU, against the format's formulas.

python -m tests.npu.modelslim_layer       (under the virtual NPU)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear

from tests.support.modelslim_models import Activations, DynamicLinear, Export, StaticLinear, quantised
from tests.support.processes import report
from vllm_ascend_patch.core.modelslim import Description
from vllm_ascend_patch.npu.modelslim.config import ModelSlimConfig
from vllm_ascend_patch.seams.checkpoint import marking

HIDDEN, HEAD, HEADS, KV_HEADS = 64, 16, 4, 2
SHARDS = {"q": HEAD * HEADS, "k": HEAD * KV_HEADS, "v": HEAD * KV_HEADS}
SEEN = Activations(-2.0, 5.0)  # inputs go beyond it, both ways
PREFIX = "model.layers.1.self_attn"
Tensors = dict[str, dict[str, torch.Tensor]]


def tensors_of(kind: str, dtype: torch.dtype, offset: bool, seed: int = 1) -> Tensors:
    """The checkpoint's tensors of each projection of an attention layer."""
    generator = torch.Generator().manual_seed(seed)
    export, found = Export(dtype=dtype, offset=offset), {}
    for name, rows in [*((f"{shard}_proj", rows) for shard, rows in SHARDS.items()), ("o_proj", HIDDEN)]:
        weight = torch.randn(rows, HIDDEN, generator=generator) / 8
        bias = torch.randn(rows, generator=generator)
        found[name] = quantised(weight, bias, kind, SEEN, f"{PREFIX}.{name}", export)
        if kind != "W8A8":
            found[name]["bias"] = bias
    return found


def layer_of(name: str, kind: str, dtype: torch.dtype, tensors: Tensors, bias: bool = True) -> Any:
    """vLLM's layer, loaded from the tensors."""
    config = ModelSlimConfig()
    types = {f"{PREFIX}.{part}.{key}": kind for part, own in tensors.items() for key in own}
    config.description = Description.of("description", types)
    prefix, before = f"{PREFIX}.{name}", torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("npu"), marking("safetensors"):
            if name == "qkv_proj":
                layer: Any = QKVParallelLinear(
                    HIDDEN, HEAD, HEADS, KV_HEADS, bias=bias, quant_config=config, prefix=prefix
                )
            else:
                layer = RowParallelLinear(HIDDEN, HIDDEN, bias=bias, quant_config=config, prefix=prefix)
    finally:
        torch.set_default_dtype(before)
    shards = [(shard, f"{shard}_proj") for shard in SHARDS] if name == "qkv_proj" else [(None, name)]
    for shard, part in shards:
        for key, tensor in tensors[part].items():
            if key == "bias" and not bias:
                continue  # as upstream's models do
            parameter = layer.get_parameter(key)
            parameter.weight_loader(parameter, tensor, *([] if shard is None else [shard]))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def inputs(dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(3)) * 3
    x[2] = 0
    x[3, :4] = torch.tensor([1000.0, -1000.0, 6.0, -6.0])
    return x.to(dtype)


def error(kind: str, dtype: torch.dtype, offset: bool, name: str) -> float:
    """The largest difference from the format's formulas in float64, in units of the result type's last place."""
    tensors = tensors_of(kind, dtype, offset)
    parts = [f"{shard}_proj" for shard in SHARDS] if name == "qkv_proj" else [name]
    formula: Callable[..., Any] = StaticLinear if kind == "W8A8" else DynamicLinear
    x = inputs(dtype)
    expected = torch.cat([formula(tensors[part])(x.double()) for part in parts], dim=-1)
    output, _ = layer_of(name, kind, dtype, tensors)(x.to("npu"))
    # Where terms cancel, a sum is as exact as its terms: the scale of the rows' largest values.
    place = torch.finfo(dtype).eps * expected.abs().clamp(min=expected.abs().mean())
    return float(((output.cpu().double() - expected).abs() / place).max())


def partial_sums() -> float:
    """What the ranks that are not the first leave out of a row-parallel layer, beside what it has to be."""
    dtype = torch.bfloat16
    tensors = tensors_of("W8A8", dtype, offset=True)
    layer, x = layer_of("o_proj", "W8A8", dtype, tensors), inputs(dtype)[:1].to("npu") * 0
    first, _ = layer(x)
    layer.tp_rank = 1
    second, _ = layer(x)
    own = tensors["o_proj"]
    expected = own["quant_bias"].double() * own["deq_scale"].double()
    return float(((first - second).cpu().double() - expected).abs().max() / expected.abs().max())


def refusal(change: Callable[[Tensors], Any], kind: str = "W8A8", bias: bool = True) -> str:
    tensors = tensors_of(kind, torch.float16, offset=True)
    change(tensors)
    try:
        layer_of("qkv_proj", kind, torch.float16, tensors, bias)
    except ValueError as found:
        return str(found)
    return "served"


REFUSALS: dict[str, Callable[[], str]] = {
    "missing": lambda: refusal(lambda t: t["k_proj"].pop("deq_scale")),
    "missing bias": lambda: refusal(lambda t: t["v_proj"].pop("quant_bias")),
    "shape": lambda: refusal(lambda t: t["q_proj"].update(weight=torch.zeros(HIDDEN, 32, dtype=torch.int8))),
    "too long": lambda: refusal(lambda t: t["v_proj"].update(deq_scale=torch.ones(64).view(torch.int32).long())),
    "dtype": lambda: refusal(lambda t: t["k_proj"].update(weight=t["k_proj"]["weight"].float())),
    "fraction": lambda: refusal(lambda t: t["q_proj"].update(input_offset=torch.tensor([0.5]))),
    "disagree": lambda: refusal(lambda t: t["v_proj"].update(input_scale=torch.tensor([0.5]))),
    "zero scale": lambda: refusal(lambda t: [own.update(input_scale=torch.zeros(1)) for own in t.values()]),
    "asymmetric": lambda: refusal(lambda t: t["k_proj"]["weight_offset"].add_(1), "W8A8_DYNAMIC"),
    "missing scale": lambda: refusal(lambda t: t["k_proj"].pop("weight_scale"), "W8A8_DYNAMIC"),
    "bias": lambda: refusal(lambda t: None, "W8A8_DYNAMIC", bias=False),
}


def main() -> None:
    with set_current_vllm_config(VllmConfig()):
        meet = f"file://{tempfile.mkdtemp()}/meet"
        init_distributed_environment(1, 0, meet, 0, "hccl")
        ensure_model_parallel_initialized(1, 1)
        combinations = itertools.product(
            ("W8A8", "W8A8_DYNAMIC", "W8A8_MIX"), (torch.float16, torch.bfloat16), (True, False), ("qkv_proj", "o_proj")
        )
        errors = {
            f"{kind} {str(dtype).removeprefix('torch.')} {'offset' if offset else 'symmetric'} {name}": error(
                kind, dtype, offset, name
            )
            for kind, dtype, offset, name in combinations
        }
        other = {str(dtype): other_encoding(dtype) for dtype in (torch.float16, torch.bfloat16)}
        report(
            {
                "errors": errors,
                "encodings": other,
                "partial": partial_sums(),
                "refused": {name: call() for name, call in REFUSALS.items()},
            }
        )


def other_encoding(dtype: torch.dtype) -> bool:
    """Whether a file written for the other dtype gives the same results: its scales are encoded differently."""
    twin = torch.bfloat16 if dtype == torch.float16 else torch.float16
    own, foreign = tensors_of("W8A8", dtype, True), tensors_of("W8A8", twin, True)
    x = inputs(dtype).to("npu")
    results = [layer_of("qkv_proj", "W8A8", dtype, tensors)(x)[0] for tensors in (own, foreign)]
    return bool(torch.equal(*results))


if __name__ == "__main__":
    main()
