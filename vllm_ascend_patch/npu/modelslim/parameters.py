# SPDX-License-Identifier: Apache-2.0
"""Parameters of ModelSlim's linear layers, and the loader that checks and converts what the checkpoint has for them.

Which slice a rank takes stays upstream's business: its parameter classes and its layers' loaders. A loader is a method of
the layer, as upstream's is, which upstream relies on when it reloads.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn import Parameter
from vllm.model_executor.parameter import ChannelQuantScaleParameter, ModelWeightParameter, PerTensorScaleParameter
from vllm.model_executor.utils import set_weight_attrs

from vllm_ascend_patch.core.int8_scales import as_bits, of_bits

_SUFFIX = "modelslim_suffix"
_NO_OFFSET = "weight_offset"


def add_weight(layer: torch.nn.Module, rows: int, columns: int) -> None:
    """int8 ``[N, K]``, this rank's slice."""
    data = torch.empty(rows, columns, dtype=torch.int8)
    loader = MethodType(_load, layer)
    _add(layer, "weight", ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=loader))


def add_per_channel(layer: torch.nn.Module, name: str, data: torch.Tensor) -> None:
    """``[N]`` or ``[N, 1]``, sliced as the outputs are."""
    _add(layer, name, ChannelQuantScaleParameter(data=data, output_dim=0, weight_loader=MethodType(_load, layer)))


def add_per_tensor(layer: torch.nn.Module, name: str, data: torch.Tensor) -> None:
    """``[parts]``: one value per tensor that was fused into the layer."""
    _add(layer, name, PerTensorScaleParameter(data=data, weight_loader=MethodType(_load, layer)))


def add_unused(layer: torch.nn.Module, name: str) -> None:
    """Takes what the format has and nothing here reads; weight offsets have to be zero."""
    parameter = Parameter(torch.empty(0), requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": MethodType(_look_at, layer)})
    _add(layer, name, parameter)


def check_scale(method: Any, layer: torch.nn.Module, name: str) -> None:
    """``ValueError`` for a scale that is not a positive number: nothing quantises to it."""
    scale = layer.get_parameter(name).data
    values = of_bits(scale) if scale.dtype == torch.int64 else scale
    if not bool((values.isfinite() & (values > 0)).all()):
        raise ValueError(
            f"{method.tensor_name(layer, name, 0, 0)}, or that of a tensor loaded beside it, has values that are no "
            "positive numbers: this is no usable ModelSlim checkpoint. Copy or export it anew"
        )


def offset_problem(name: str, offset: torch.Tensor) -> ValueError | None:
    """The error for a weight offset that is not zero: the operators take symmetric weights only."""
    if not bool(offset.any()):
        return None
    return ValueError(
        f"{name} is not zero: weights that are quantised asymmetrically are not supported on Ascend NPUs by this port. "
        "Export with symmetric weights (msModelSlim: weight symmetric: true)"
    )


def _add(layer: torch.nn.Module, name: str, parameter: Parameter) -> None:
    set_weight_attrs(parameter, {_SUFFIX: name})
    layer.register_parameter(name, parameter)


def _load(layer: Any, param: Any, loaded_weight: torch.Tensor, loaded_shard_id: Any = None) -> None:
    """As upstream's ``weight_loader``, whose parameters these are. ``ValueError`` for what does not fit, by its name."""
    suffix = getattr(param, _SUFFIX)
    name, shape = _name(layer, suffix, loaded_shard_id), list(loaded_weight.shape)
    expected = _expected(layer, suffix, loaded_shard_id)
    if shape != expected and not (shape == [] and expected == [1]):
        raise ValueError(f"{name} of the checkpoint has shape {shape}, where {expected} is expected")
    if param.dtype == torch.int8 and loaded_weight.dtype != torch.int8:
        raise ValueError(f"{name} of the checkpoint is {loaded_weight.dtype}, where its description promises int8")
    if suffix == "input_offset":
        value = float(loaded_weight)
        if value != round(value) or not -128 <= value <= 127:
            raise ValueError(
                f"{name} of the checkpoint is {value:g}, where a whole number from -128 to 127 is expected"
            )
    elif param.dtype == torch.int64 and loaded_weight.is_floating_point():
        loaded_weight = as_bits(loaded_weight)
    elif param.dtype == torch.float32 and loaded_weight.dtype == torch.int64:
        loaded_weight = of_bits(loaded_weight)
    upstream = getattr(layer, "weight_loader_v2", None) or layer.weight_loader
    if loaded_shard_id is None:
        upstream(param, loaded_weight)
    else:
        upstream(param, loaded_weight, loaded_shard_id)


def _look_at(layer: Any, param: Any, loaded_weight: torch.Tensor, loaded_shard_id: Any = None) -> None:
    suffix = getattr(param, _SUFFIX)
    problem = offset_problem(_name(layer, suffix, loaded_shard_id), loaded_weight) if suffix == _NO_OFFSET else None
    if problem is not None:
        raise problem


def _name(layer: Any, suffix: str, shard: Any) -> str:
    """How the checkpoint calls the tensor."""
    names = layer.quant_method.names()
    part = _part(shard)
    return f"{names[part if part is not None and part < len(names) else 0]}.{suffix}"


def _expected(layer: Any, suffix: str, shard: Any) -> list[int]:
    """The shape of the whole tensor in the checkpoint, of one shard of a fused layer."""
    if suffix in ("input_scale", "input_offset"):
        return [1]
    rows = _whole_rows(layer, _part(shard))
    if suffix == "weight":
        return [rows, layer.input_size]
    return [rows, 1] if suffix == "weight_scale" else [rows]


def _whole_rows(layer: Any, part: int | None) -> int:
    if part is None:
        return layer.output_size
    if hasattr(layer, "total_num_heads"):  # query, key and value; a rank may hold copies of key and value heads
        heads = layer.total_num_heads if part == 0 else layer.total_num_kv_heads
        of_values = getattr(layer, "v_head_size", layer.head_size)  # before vLLM 0.14 that of the keys
        return heads * (of_values if part == 2 else layer.head_size)
    return layer.output_sizes[part]


def _part(shard: Any) -> int | None:
    return {"q": 0, "k": 1, "v": 2}.get(shard, shard if isinstance(shard, int) else None)
