# SPDX-License-Identifier: Apache-2.0
"""Script: linear layers of vLLM with packed int4 weights (W4A16) on an NPU, before and after tensors are pushed into them.

python -m tests.npu.int4_layer       (under the virtual NPU)
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import tempfile
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

from tests.support.int4_models import quantised
from tests.support.processes import report
from vllm_ascend_patch.npu.int4_linear import register
from vllm_ascend_patch.seams.checkpoint import marking

HIDDEN, HEAD, HEADS, KV_HEADS = 64, 16, 4, 2
SHARDS = {"q": HEAD * HEADS, "k": HEAD * KV_HEADS, "v": HEAD * KV_HEADS}
PREFIX = "model.layers.1.self_attn"


def config_of(group_size: int, symmetric: bool = True) -> CompressedTensorsConfig:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size or None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    own = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    config = CompressedTensorsConfig.from_config(own)
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    return config


def layer_of(name: str, dtype: torch.dtype, config: CompressedTensorsConfig) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("npu"), marking("safetensors"):
            options: dict[str, Any] = {"quant_config": config, "prefix": f"{PREFIX}.{name}", "bias": False}
            if name == "qkv_proj":
                return QKVParallelLinear(HIDDEN, HEAD, HEADS, KV_HEADS, **options)
            return RowParallelLinear(HIDDEN, HIDDEN, **options)
    finally:
        torch.set_default_dtype(before)


def load(layer: Any, name: str, dtype: torch.dtype, group_size: int, seed: int, without: str = "") -> torch.Tensor:
    """Bring the tensors of a checkpoint; returns the weight that they mean."""
    generator, meant = torch.Generator().manual_seed(seed), []
    shards = SHARDS if name == "qkv_proj" else {None: HIDDEN}
    for shard, rows in shards.items():
        tensors, weight = quantised(torch.randn(rows, HIDDEN, generator=generator).to(dtype) / 8, group_size)
        meant.append(weight)
        for key, tensor in tensors.items():
            if f"{shard}.{key}" != without:
                parameter = layer.get_parameter(key)
                parameter.weight_loader(parameter, tensor, *([] if shard is None else [shard]))
    return torch.cat(meant)


def error(layer: Any, weight: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest difference from float64, in units of the result type's last place."""
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = x.double() @ weight.double().t()
    output, _ = layer(x.to("npu"))
    place = torch.finfo(dtype).eps * expected.abs().clamp(min=expected.abs().mean())
    return float(((output.cpu().double() - expected).abs() / place).max())


def errors(name: str, dtype: torch.dtype, group_size: int) -> list[float]:
    """After loading, and after another checkpoint was pushed into the layer; infinite where a tensor moved."""
    layer = layer_of(name, dtype, config_of(group_size))
    weight = load(layer, name, dtype, group_size, seed=1)
    layer.quant_method.process_weights_after_loading(layer)
    held = {key: parameter.data_ptr() for key, parameter in layer.named_parameters()}
    found = [error(layer, weight, dtype), error(layer, load(layer, name, dtype, group_size, seed=2), dtype)]
    return found if held == {k: p.data_ptr() for k, p in layer.named_parameters()} else [float("inf")]


def refusal(without: str) -> str:
    layer = layer_of("qkv_proj", torch.float16, config_of(32))
    load(layer, "qkv_proj", torch.float16, 32, 1, without)
    try:
        layer.quant_method.process_weights_after_loading(layer)
    except ValueError as found:
        return str(found)
    return "served"


def refusal_of(config: CompressedTensorsConfig) -> str:
    try:
        layer_of("o_proj", torch.float16, config)
    except ValueError as found:
        return str(found)
    return "served"


def w4a8() -> CompressedTensorsConfig:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    own = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    return CompressedTensorsConfig.from_config(own)


if __name__ == "__main__":
    register()
    with tempfile.NamedTemporaryFile() as store, set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{store.name}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        report(
            {
                "errors": {
                    f"{name} {dtype} {size}": errors(name, dtype, size)
                    for name in ("qkv_proj", "o_proj")
                    for dtype in (torch.float16, torch.bfloat16)
                    for size in (0, 32)
                },
                "refused": {without: refusal(without) for without in ("k.weight_packed", "v.weight_scale")},
                "asymmetric": refusal_of(config_of(32, symmetric=False)),
                "w4a8": refusal_of(w4a8()),
            }
        )
