# SPDX-License-Identifier: Apache-2.0
"""Linear layers of ModelSlim checkpoints: int8 weights, activations quantised with the checkpoint's scale or per token.

Parameters have the checkpoint's layout, so that loading them again is enough. How they are checked while they are loaded is
``parameters.py``'s; experts are ``seams/moe/modelslim.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearMethodBase, RowParallelLinear

from vllm_ascend_patch.core import modelslim
from vllm_ascend_patch.npu.int8_linear import check_width, dynamic_product, first_rows, loaded_parts, static_product
from vllm_ascend_patch.seams import checkpoint

from . import parameters

_PER_CHANNEL = ("weight", "weight_scale", "deq_scale", "quant_bias")
_PER_TENSOR = ("input_scale", "input_offset")


class Int8LinearMethod(LinearMethodBase):
    """What both kinds share: the int8 weight, and who says which tensors the checkpoint has to have."""

    def __init__(self, config: Any, prefix: str, kind: str) -> None:
        self.config = config
        self.prefix = prefix
        self.kind = kind

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Upstream's call: make the parameters that the checkpoint's tensors are loaded into."""
        layer.logical_widths = output_partition_sizes  # type: ignore[assignment]
        parameters.add_weight(layer, sum(output_partition_sizes), input_size_per_partition)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        checkpoint.refuse_unwritten(layer, self)
        check_width(self.prefix, layer.get_parameter("weight"))

    def names(self) -> list[str]:
        """The checkpoint's modules that the layer is made of."""
        return self.config.description.names(self.prefix, self.config.packed_modules_mapping)

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        """As ``checkpoint.Owner`` has it."""
        if name in _PER_TENSOR:
            return range(len(layer.logical_widths))
        return first_rows(layer.logical_widths) if name in _PER_CHANNEL else ()

    def loaded(self, layer: Any, arguments: dict[str, Any], parts: int) -> list[tuple[int, int]]:
        """As ``checkpoint.Owner`` has it."""
        return loaded_parts(arguments, parts)

    def tensor_name(self, layer: Any, name: str, expert: int, part: int) -> str:
        """As ``checkpoint.Owner`` has it."""
        names = self.names()
        if len(names) == len(layer.logical_widths):
            return f"{names[part]}.{name}"
        return f"{self.prefix}.{name}" + (f" (part {part})" if len(layer.logical_widths) > 1 else "")


class DynamicLinearMethod(Int8LinearMethod):
    """``y = (int8(x) @ W) * scale(x) * weight_scale + bias``, the scale of ``x`` found per token.

    W8A8_MIX has static scales besides, for engines that only decode; with prompts in the same step the dynamic ones serve.
    """

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        super().create_weights(layer, *args, **kwargs)
        rows = layer.get_parameter("weight").shape[0]
        parameters.add_per_channel(layer, "weight_scale", torch.empty(rows, 1, dtype=torch.float32))
        parameters.add_unused(layer, "weight_offset")
        if self.kind == modelslim.MIXED:
            for name in (*_PER_TENSOR, "deq_scale", "quant_bias"):
                parameters.add_unused(layer, name)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Also refuses a bias that the model has no place for: upstream's models drop it silently."""
        super().process_weights_after_loading(layer)
        parameters.check_scale(self, layer, "weight_scale")
        extra = next((n for n in self.names() if f"{n}.bias" in self.config.description.types), None)
        if extra is not None and getattr(layer, "bias", None) is None:
            raise ValueError(
                f"the checkpoint has {extra}.bias, which this model's layers do not have (an anti-outlier method of "
                f"msModelSlim adds it): it cannot be served on Ascend NPUs by this port. {modelslim.EXPORT}"
            )

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``[..., K]`` in bfloat16 or float16 -> ``[..., N]`` in the same dtype."""
        return dynamic_product(x, layer.get_parameter("weight"), layer.get_parameter("weight_scale").flatten(), bias)

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        if name in ("deq_scale", "quant_bias", *_PER_TENSOR):
            return ()
        return first_rows(layer.logical_widths) if name == "bias" else super().first_rows(layer, name, parameter)


class StaticLinearMethod(Int8LinearMethod):
    """``y = (clamp(round(x / input_scale + input_offset)) @ W + quant_bias) * deq_scale``.

    ``quant_bias`` has the layer's bias and the correction for the offset in it. Ranks that hold slices of the inputs have
    partial sums, of which one adds it.
    """

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        super().create_weights(layer, *args, **kwargs)
        rows, parts = layer.get_parameter("weight").shape[0], len(layer.logical_widths)  # type: ignore[arg-type]
        # float16 results want the bits of the scale (torch_npu: npu_quant_matmul); the loader converts what the file has.
        scale = torch.int64 if kwargs["params_dtype"] == torch.float16 else torch.float32
        parameters.add_per_channel(layer, "deq_scale", torch.empty(rows, dtype=scale))
        parameters.add_per_channel(layer, "quant_bias", torch.empty(rows, dtype=torch.int32))
        parameters.add_per_tensor(layer, "input_scale", torch.empty(parts, dtype=torch.float32))
        parameters.add_per_tensor(layer, "input_offset", torch.empty(parts, dtype=torch.int32))
        for name in ("weight_scale", "weight_offset"):
            parameters.add_unused(layer, name)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Also refuses parts that quantise their one input differently."""
        super().process_weights_after_loading(layer)
        parameters.check_scale(self, layer, "input_scale")
        parameters.check_scale(self, layer, "deq_scale")
        for name in _PER_TENSOR:
            values = layer.get_parameter(name).tolist()
            if len(set(values)) > 1:
                found = ", ".join(f"{self.tensor_name(layer, name, 0, i)} is {v:g}" for i, v in enumerate(values))
                raise ValueError(
                    f"{found}: {self.prefix} is one layer in vLLM, whose parts have to quantise their input alike on "
                    "Ascend NPUs. Calibrate them together, or export them as W8A8_DYNAMIC"
                )

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``[..., K]`` in bfloat16 or float16 -> ``[..., N]`` in the same dtype. ``bias`` is in ``quant_bias`` already."""
        partial = isinstance(layer, RowParallelLinear) and layer.tp_rank > 0
        return static_product(
            x,
            layer.get_parameter("weight"),
            layer.get_parameter("deq_scale"),
            layer.get_parameter("input_scale")[:1],
            layer.get_parameter("input_offset")[:1],
            None if partial else layer.get_parameter("quant_bias"),
        )

    def first_rows(self, layer: Any, name: str, parameter: torch.Tensor) -> Sequence[int]:
        return () if name == "weight_scale" else super().first_rows(layer, name, parameter)
