# SPDX-License-Identifier: Apache-2.0
"""Two processes with vLLM's own engine group, patched as in an engine: the second ends, the first goes on asking. Then this
process waits for an engine that fails, as vLLM's headless command does, and ends."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip

import inspect
import multiprocessing
import os
import threading
import weakref
from typing import Any

import vllm.entrypoints.cli.main  # noqa: F401  # makes this process vLLM's command
from vllm.config import ParallelConfig
from vllm.v1.engine import utils

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


def lose_an_engine() -> None:
    manager = utils.CoreEngineProcManager.__new__(utils.CoreEngineProcManager)
    engine = multiprocessing.get_context("fork").Process(target=os._exit, args=(3,), name="EngineCore_DP1")
    manager.processes = [engine]
    manager.manager_stopped = threading.Event()
    manager.failed_proc_name = None
    manager._request_shutdown_timeout = 0
    manager._finalizer = weakref.finalize(manager, utils.shutdown, manager.processes)
    engine.start()
    wait = getattr(manager, "monitor_engine_liveness", None) or manager.join_first
    wait()


if __name__ == "__main__":
    exchanges = [name for name in ("has_unfinished_dp", "sync_dp_state") if hasattr(ParallelConfig, name)]
    report({name: run_ranks(ask, 2, name, free_port(), group=None)[0].error for name in exchanges})
    lose_an_engine()
