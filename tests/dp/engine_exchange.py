# SPDX-License-Identifier: Apache-2.0
"""Two processes with vLLM's own engine group, patched as in an engine: the second ends, the first goes on asking."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip

import inspect
from typing import Any

from vllm.config import ParallelConfig

from tests.support.environment import free_port
from tests.support.processes import report
from tests.support.ranks import run_ranks

vllm_ascend_patch.apply()


def ask(rank: int, size: int, name: str, port: int) -> None:
    """Both ask once, and rank 1 leaves; rank 0 asks until it is refused."""
    config = ParallelConfig(data_parallel_size=size, data_parallel_rank=rank, data_parallel_master_ip="127.0.0.1")
    config._data_parallel_master_port_list = [port]
    group = config.stateless_init_dp_group()
    call = getattr(config, name)
    arguments: dict[str, Any] = {"has_unfinished": True, "pending_pause": False}
    known = inspect.signature(call).parameters
    arguments = {key: value for key, value in arguments.items() if key in known}
    for _ in range(3 if rank == 0 else 1):
        call(dp_group=group, **arguments)


if __name__ == "__main__":
    exchanges = [name for name in ("has_unfinished_dp", "sync_dp_state") if hasattr(ParallelConfig, name)]
    report({name: run_ranks(ask, 2, name, free_port(), group=None)[0].error for name in exchanges})
