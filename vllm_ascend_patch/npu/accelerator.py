# SPDX-License-Identifier: Apache-2.0
"""Makes ``torch.accelerator`` answer for NPUs where torch's own generic code does not reach torch_npu.

vLLM measures memory through ``torch.accelerator``; what is replaced here is what torch cannot forward to an out-of-tree
device by itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch_npu

_MEMORY_FUNCTIONS = {
    "get_memory_info": "mem_get_info",
    "memory_stats": "memory_stats",
    "memory_reserved": "memory_reserved",
    "memory_allocated": "memory_allocated",
    "max_memory_allocated": "max_memory_allocated",
    "max_memory_reserved": "max_memory_reserved",
    "reset_peak_memory_stats": "reset_peak_memory_stats",
    "empty_cache": "empty_cache",
    "empty_host_cache": "host_empty_cache",
}


def map_accelerator_names() -> None:
    """Idempotent; names that this torch does not have are left out."""
    for name, npu_name in _MEMORY_FUNCTIONS.items():
        if hasattr(torch.accelerator, name) and hasattr(torch_npu.npu, npu_name):
            setattr(torch.accelerator, name, partial(_forward, npu_name))


def _forward(npu_name: str, device: Any = None) -> Any:
    function = getattr(torch_npu.npu, npu_name)
    return function() if device is None else function(device)
