# SPDX-License-Identifier: Apache-2.0
"""Points the few ``torch.cuda`` names that upstream's runner uses at ``torch_npu.npu``.

Upstream's runner creates streams and events as ``torch.cuda.Stream`` and so on, also long after its constructor, so the
names stay mapped for the life of the worker process. Only worker processes are touched.
"""

from __future__ import annotations

from functools import partial

import torch
import torch_npu

_CLASSES = ("Stream", "Event")
_FUNCTIONS = (
    "current_stream",
    "default_stream",
    "stream",
    "set_stream",
    "synchronize",
    "empty_cache",
    "mem_get_info",
    "memory_stats",
    "memory_reserved",
    "memory_allocated",
    "max_memory_allocated",
    "reset_peak_memory_stats",
)


def map_cuda_names() -> None:
    """Idempotent. Functions get a ``partial`` each, because Dynamo refuses one object under two names."""
    for name in _CLASSES:
        setattr(torch.cuda, name, getattr(torch_npu.npu, name))
    for name in _FUNCTIONS:
        setattr(torch.cuda, name, partial(getattr(torch_npu.npu, name)))
