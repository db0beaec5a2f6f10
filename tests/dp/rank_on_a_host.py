# SPDX-License-Identifier: Apache-2.0
"""Script: one rank of a world over several hosts, without a device; steps until something breaks, or STEPS of them.

python -m tests.dp.rank_on_a_host RANK SIZE ADDRESS PORT TIMEOUT STEPS [AWAITED]      (exit code 1 when something broke)

With AWAITED, the last step's forward has no end on that rank; the others wait for it in a collective.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from tests.dp.sessions import host_session
from tests.support.processes import report
from vllm_ascend_patch.core.dp import Vote


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(rank: int, size: int, address: str, port: int, timeout: float, steps: int, awaited: int | None = None) -> int:
    logged = Lines()
    logging.getLogger("vllm_ascend_patch").addHandler(logged)
    logging.getLogger("vllm_ascend_patch").setLevel(logging.INFO)
    store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    session = host_session(rank, size, timeout, transport="auto")
    assert session.channel.watchdog is not None
    board, error, told = session.channel.watchdog.board, "", False
    for number in range(1, steps + 1):
        try:
            session.announce(Vote(number, number), with_prefill=False)
            session.resolve(Vote(number, number))
            session.channel.progress.enter("forward", blocking=True)
            if number == steps and awaited is not None:
                if rank == awaited:
                    threading.Event().wait()
                print("waiting", flush=True)
                dist.all_reduce(torch.ones(1))
        except RuntimeError as broken:
            error = f"{type(broken).__name__}: {broken}"
            session.abandon(broken)
            break
        if not told and all(peer.pid for peer in board.peers()):
            told = True
            print("serving", flush=True)
        time.sleep(0.005)
    report({"transport": session.channel.transport.name, "error": error, "log": logged.lines})
    if not error:
        session.close()
    return int(bool(error))


if __name__ == "__main__":
    rank, size, address, port, timeout, steps, *awaited = sys.argv[1:]
    code = main(int(rank), int(size), address, int(port), float(timeout), int(steps), *map(int, awaited))
    sys.stdout.flush()
    os._exit(code)  # interpreter shutdown would wait for connections that a cable has left open
