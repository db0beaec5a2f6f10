# SPDX-License-Identifier: Apache-2.0
"""Runs a function in N real processes that share a gloo world, and brings back what each returned or how it ended.

Processes are forked (torch is imported once), limited in time, and never left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """How one rank's process ended. `error` is "Type: message" of an exception that left the function."""

    value: Any
    error: str | None
    exit_code: int | None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _entry(function: Callable[..., Any], rank: int, size: int, port: int, pipe: Any, args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    code = 0
    try:
        pipe.send((function(rank, size, *args), None))
    except BaseException as error:
        pipe.send((None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        code = 1
    pipe.close()
    os._exit(code)  # interpreter shutdown would wait for ranks that the test has killed


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout: float = 120.0) -> list[Outcome]:
    """Call `function(rank, size, *args)` in `size` processes.

    Raises:
        AssertionError: some process was still running after `timeout` seconds: what a hang looks like.
    """
    port = free_port()
    pipes, processes = [], []
    for rank in range(size):
        here, there = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=_entry, args=(function, rank, size, port, there, args), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    deadline = time.monotonic() + timeout
    values: list[tuple[Any, str | None]] = [(None, None)] * size
    try:
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                alive = [r for r, p in enumerate(processes) if p.is_alive()]
                raise AssertionError(f"hang: ranks {alive} still running after {timeout:g} s")
            try:
                values[rank] = pipe.recv()
            except EOFError:
                values[rank] = (None, None)
        for process in processes:
            process.join(max(1.0, deadline - time.monotonic()))
        stuck = [r for r, p in enumerate(processes) if p.is_alive()]
        assert not stuck, f"hang at exit: ranks {stuck}"
        return [Outcome(v, e, p.exitcode) for (v, e), p in zip(values, processes, strict=True)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def values_of(outcomes: list[Outcome]) -> list[Any]:
    """What all ranks returned; fails with the traceback of the first that raised."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.error is None, f"rank {rank}: {outcome.error}"
        assert outcome.exit_code == 0, f"rank {rank} ended with {outcome.exit_code}"
    return [outcome.value for outcome in outcomes]


def under_virtual_npu(
    *arguments: str, devices: int = 1, timeout: float = 180.0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` on simulated devices; the whole process tree is ended after `timeout` seconds."""
    command = [sys.executable, "-m", "vllm_ascend_patch", "virtual-npu", "--devices", str(devices), "--"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    variables.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    process = subprocess.Popen(
        [*command, sys.executable, *arguments],
        cwd=ROOT,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"hang: {arguments} after {timeout:g} s\n{stdout[-4000:]}\n{stderr[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
