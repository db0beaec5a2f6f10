# SPDX-License-Identifier: Apache-2.0
"""Memory at start-up: upstream's snapshot of it, and the share of it that vLLM may use. Reads, allocates nothing.

Upstream moved both between modules and changed their arguments; they are found by what they are.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from vllm.v1.worker import gpu_worker


def snapshot(device: torch.device) -> Any:
    """Upstream's ``MemorySnapshot`` of ``device``, which has to be the current one."""
    kind = gpu_worker.MemorySnapshot
    return kind(device=device) if "device" in inspect.signature(kind).parameters else kind()


def requested_memory(taken: Any, cache_config: Any) -> int:
    """Bytes that vLLM may use: ``gpu_memory_utilization`` of the total. Raises ``ValueError`` when less is free."""
    upstream = getattr(gpu_worker, "request_memory", None)
    if upstream is not None:
        return upstream(taken, cache_config)
    share = cache_config.gpu_memory_utilization
    wanted = int(taken.total_memory * share)
    if taken.free_memory < wanted:
        raise ValueError(
            f"--gpu-memory-utilization {share} asks for {wanted / 2**30:.2f} GiB of the NPU's "
            f"{taken.total_memory / 2**30:.2f} GiB, but {taken.free_memory / 2**30:.2f} GiB are free. Lower it, or stop "
            "what else uses this NPU"
        )
    return wanted
