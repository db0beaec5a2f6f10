# SPDX-License-Identifier: Apache-2.0
"""Runs a function in N real processes, the ranks of one world, and brings back what each returned or how it ended.

Processes are limited in time and never left behind. What the ranks compute does not belong here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from .environment import free_port


@dataclass(frozen=True)
class Outcome:
    """How one rank's process ended.

    Attributes:
        value: what the function returned.
        error, trace: ``Type: message`` and traceback of the exception that left the function.
        exit_code: of the process; negative for the signal that ended it, None for one that was ended by the caller.
    """

    value: Any
    error: str | None
    trace: str | None
    exit_code: int | None


def run_ranks(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    group: Literal["gloo", "hccl"] | None = "gloo",
    start: Literal["fork", "forkserver"] = "fork",
    together: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> list[Outcome]:
    """Call ``function(rank, size, *args)`` in ``size`` processes; what became of each, by rank.

    Args:
        group: the default process group that they are in; None for none, only its address being in the environment.
        start: forked from here, a rank has all of this process; from the fork server, it has torch and nothing of this one.
        together: no process ends before all have answered, because an early end would tell the others something. One
            that hangs at its end is then killed.
        environment: variables of the ranks.
        timeout: seconds until the world counts as hung.

    Raises:
        TimeoutError: some rank had not answered by then, or its process did not end.
    """
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    context = _context(start)
    pipes, processes = [], []
    deadline = time.monotonic() + timeout
    try:
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(
                target=_entry, args=(function, variables, rank, size, group, there, together, args), daemon=True
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        answers: list[tuple[Any, str | None, str | None]] = [(None, None, None)] * size
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                alive = [r for r, p in enumerate(processes) if p.is_alive()]
                raise TimeoutError(f"hang: ranks {alive} of {size} still running after {timeout:g} s")
            with contextlib.suppress(EOFError, ConnectionResetError):  # it died before it could answer
                answers[rank] = pipe.recv()
        if together:
            _release(pipes)
            _end(processes, time.monotonic() + 10)
        else:
            _end(processes, max(deadline, time.monotonic() + 1))
            if stuck := [rank for rank, process in enumerate(processes) if process.is_alive()]:
                raise TimeoutError(f"hang at exit: ranks {stuck} of {size}")
        return [
            Outcome(value, error, trace, process.exitcode)
            for (value, error, trace), process in zip(answers, processes, strict=True)
        ]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def values_of(outcomes: list[Outcome]) -> list[Any]:
    """What all ranks returned; fails with the traceback of the first that raised."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.error is None, f"rank {rank}: {outcome.error}\n{outcome.trace}"
        assert outcome.exit_code == 0, f"rank {rank} ended with {outcome.exit_code}"
    return [outcome.value for outcome in outcomes]


def _context(start: Literal["fork", "forkserver"]) -> Any:
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["torch", "torch.distributed"])  # seconds of processor time for each rank
    return context


def _entry(
    function: Callable[..., Any],
    variables: Mapping[str, str],
    rank: int,
    size: int,
    group: str | None,
    pipe: Any,
    together: bool,
    args: tuple[Any, ...],
) -> None:
    os.environ.update(variables)
    code = 0
    try:
        if group is not None:
            _join(group, rank, size)
        pipe.send((function(rank, size, *args), None, None))
    except BaseException as error:
        pipe.send((None, f"{type(error).__name__}: {error}", traceback.format_exc()))
        code = 1
    sys.stdout.flush()
    parent = multiprocessing.parent_process()
    while together and parent is not None and parent.is_alive() and not pipe.poll(0.1):
        pass
    os._exit(code)  # interpreter shutdown would wait for ranks that the test has killed


def _join(group: str, rank: int, size: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if group == "hccl":
        torch.npu.set_device(rank)
    dist.init_process_group(group, rank=rank, world_size=size, timeout=timedelta(seconds=120))


def _release(pipes: list[Any]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.send("all have answered")


def _end(processes: list[Any], deadline: float) -> None:
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
