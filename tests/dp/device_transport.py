# SPDX-License-Identifier: Apache-2.0
"""Script: the device transport on real torch_npu, N processes on an hccl group; prints what the dispatcher saw per step.

python -m tests.dp.device_transport RANKS       (under the virtual NPU with as many devices)
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.support.processes import report
from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.dp import Vote
from vllm_ascend_patch.core.dp.startup import Groups, SessionConfig, start_session
from vllm_ascend_patch.core.dp.transport import DeviceTransport

STEPS = 4
LATE = 0.5


class Recorder(TorchDispatchMode):
    """Each operator of this thread: name, whether it ran on ``stream``, devices and addresses of its tensors."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.stream = stream
        self.seen: list[tuple[str, bool, list[str], list[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        on_side = torch.npu.current_stream() == self.stream
        name = func.overloadpacket.__name__
        self.seen.append((name, on_side, [t.device.type for t in tensors], [t.data_ptr() for t in tensors]))
        return func(*args, **(kwargs or {}))


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run_rank(rank: int, size: int) -> dict[str, Any]:
    device = torch.device("npu", rank)
    torch.npu.set_device(device)
    ranks = list(range(size))

    def groups() -> Groups:
        return Groups(dist.new_group(ranks, backend="gloo"), dist.new_group(ranks, backend="hccl"))

    config = SessionConfig("device", 30.0, 2, {"software": "same"}, "test", log_interval=0)
    store = dist.distributed_c10d._get_default_store()
    session = start_session(config, store, rank, size, groups, device)
    transport = session.channel.transport
    assert isinstance(transport, DeviceTransport)
    steps, tokens = [], []
    for step in range(STEPS):
        vote = Vote(10 * step + rank + 1, 10 * step + rank + 1)
        with Recorder(transport._stream) as recorder:
            session.announce(vote, with_prefill=False)
            agreement = session.resolve(vote)
        steps.append(recorder.seen)
        tokens.append(agreement.tokens)
    dist.barrier()
    if rank == 0:
        time.sleep(LATE)
    start = time.perf_counter()
    session.announce(Vote(1, 1), with_prefill=False)
    posted = time.perf_counter() - start
    session.resolve(Vote(1, 1))
    session.close()
    lines: list[str] = []
    logging.getLogger("vllm_ascend_patch").addHandler(_Lines(lines))
    measured = start_session(replace(config, transport="auto", name="auto"), store, rank, size, groups, device)
    chosen = measured.channel.transport.name
    measured.close()
    pinned = [t.is_pinned() for t in (*transport._host_in, *transport._host_out)]
    return {"steps": steps, "tokens": tokens, "post seconds": posted, "pinned": pinned, "chosen": chosen, "log": lines}


if __name__ == "__main__":
    report(values_of(run_ranks(run_rank, int(sys.argv[1]))))
