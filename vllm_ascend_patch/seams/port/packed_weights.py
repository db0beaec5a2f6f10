# SPDX-License-Identifier: Apache-2.0
"""int4 parameters of linear layers as torch_npu's operators read them; the product is ``npu/int4_linear.py``'s.

A loader that turns the four bits of each weight while it is loaded makes a reload, and a tensor that is pushed into a
running model, count like the first load.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from vllm_ascend_patch.core.packed_int4 import group_scales, to_signed
from vllm_ascend_patch.seams.by_name import parameters_of


def create_weights(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Upstream's parameters ``weight_packed`` ``[N, K / 8]`` and ``weight_scale`` ``[N, G]``, the latter a view of
    ``[G, N]`` in memory."""
    named = dict(zip(parameters_of(original), args, strict=False)) | kwargs
    upstream = named["weight_loader"]

    @wraps(upstream)  # a reload binds arguments by the loader's own names
    def load(param: torch.nn.Parameter, loaded_weight: torch.Tensor, *more: Any, **options: Any) -> Any:
        packed = param.dtype == torch.int32
        return upstream(param, to_signed(loaded_weight) if packed else loaded_weight, *more, **options)

    result = original(**named | {"weight_loader": load})
    layer = named["layer"]
    layer.weight_scale.data = group_scales(layer.weight_scale.data)
    for name in ("weight_packed", "weight_scale"):
        # Registered again, now that the kernel is there, whose tensors are marked until they are loaded.
        setattr(layer, name, getattr(layer, name))
    return result
