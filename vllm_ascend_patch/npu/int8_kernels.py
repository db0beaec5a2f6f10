# SPDX-License-Identifier: Apache-2.0
"""Where vLLM keeps its int8 kernels for linear layers: their base class, and the list that it chooses one from.

What the kernel computes is ``int8_linear.py``'s.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from vllm.platforms import PlatformEnum

try:
    from vllm.model_executor.kernels import linear as _kernels

    _classes = import_module("vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel")
except ImportError:  # older releases have them among the quantised layers
    from vllm.model_executor.layers.quantization.kernels import scaled_mm as _kernels

    _classes = import_module("vllm.model_executor.layers.quantization.kernels.scaled_mm.ScaledMMLinearKernel")

_Base: Any = getattr(_classes, "Int8ScaledMMLinearKernel", None) or _classes.ScaledMMLinearKernel


class Int8LinearKernel(_Base):
    """Upstream's base class; the oldest releases name a layer's parameters one by one and not as a list."""

    config: Any
    layer_param_names: list[str]

    def __init__(self, c: Any, *names: Any, **named: str) -> None:
        super().__init__(c, *names, **named)
        if not hasattr(self, "layer_param_names"):
            self.layer_param_names = [*names, *named.values()]

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def get_min_capability(cls) -> int:
        return 0  # CUDA's measure, asked for in older releases

    def layer_params(self, layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Weight int8 ``[N, K]``; its scale, ``[N, 1]`` or one per tensor loaded into it; the inputs' ``[1]``, if static."""
        weight, scale, input_scale = self.layer_param_names[:3]
        return getattr(layer, weight), getattr(layer, scale), getattr(layer, input_scale, None)


def register(kernel: type[Int8LinearKernel]) -> None:
    """Offer ``kernel`` to vLLM's selection, once per process."""
    lists = getattr(_kernels, "_POSSIBLE_INT8_KERNELS", None)
    if lists is None:
        lists = _kernels._POSSIBLE_KERNELS  # of the oldest releases, whose other kernels have modules of their own
    kernels = lists.setdefault(PlatformEnum.OOT, [])
    if kernel not in kernels:
        kernels.append(kernel)
