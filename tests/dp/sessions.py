# SPDX-License-Identifier: Apache-2.0
"""Sessions among processes of this host without a device, as start-up builds them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from vllm_ascend_patch.core.dp import DPSession
from vllm_ascend_patch.core.dp.activity import NO_LANDMARKS, Landmarks
from vllm_ascend_patch.core.dp.startup import Groups, SessionConfig, start_session

CPU = torch.device("cpu")


def host_session(
    rank: int,
    size: int,
    timeout: float = 60.0,
    fingerprint: dict[str, str] | None = None,
    transport: str = "cpu",
    landmarks: Landmarks = NO_LANDMARKS,
) -> DPSession:
    """A session over gloo or shared memory. All ranks call it together."""
    config = SessionConfig(
        transport, timeout, 2, fingerprint or {"software": "same"}, "test", log_interval=0, landmarks=landmarks
    )
    store = dist.distributed_c10d._get_default_store()
    return start_session(
        config, store, rank, size, lambda: Groups(dist.new_group(list(range(size)), backend="gloo")), CPU
    )
