# SPDX-License-Identifier: Apache-2.0
"""A process that waits for another one ends after one of its own workers has, and only then. Real processes."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess

import pytest
import torch
import torch.distributed as dist

from tests.support.environment import free_port
from vllm_ascend_patch.core.dp.lost_workers import ends_without
from vllm_ascend_patch.core.dp.watchdog import EXIT_CODE

GRACE = 0.3
SOON = 5.0


@pytest.fixture
def worker() -> Iterator[BaseProcess]:
    process = multiprocessing.get_context("fork").Process(
        target=time.sleep, args=(60,), name="VllmWorker-0", daemon=True
    )
    process.start()
    yield process
    process.kill()
    process.join()


def test_a_workers_end_ends_the_process_after_the_grace_and_is_named(
    worker: BaseProcess, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    with caplog.at_level(logging.CRITICAL), ends_without([worker], "an exchange", GRACE, ended.set):
        assert not ended.wait(2 * GRACE), "the worker is alive"
        worker.kill()
        killed = time.monotonic()
        assert ended.wait(SOON)
        assert time.monotonic() - killed >= GRACE
    assert f"VllmWorker-0 (pid {worker.pid}) has ended" in caplog.text
    assert f"still in an exchange, with a process that does not answer: ending it with code {EXIT_CODE}" in caplog.text


def test_what_ends_within_the_grace_goes_on(worker: BaseProcess) -> None:
    ended = threading.Event()
    with ends_without([worker], "an exchange", GRACE, ended.set):
        worker.kill()
        worker.join()
    assert not ended.wait(3 * GRACE)


def _group(rank: int, port: int, hosts_store: bool = False) -> dist.ProcessGroupGloo:
    store = dist.TCPStore("127.0.0.1", port, 2, hosts_store, timeout=timedelta(seconds=30))
    return dist.ProcessGroupGloo(dist.PrefixStore("group", store), rank, 2, timedelta(seconds=60))


def _engine(port: int) -> None:
    """An exchange with a rank that does not answer, and a worker that ends meanwhile."""
    group = _group(0, port, hosts_store=True)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.5,))
    worker.start()
    with ends_without([worker], "an exchange", GRACE):
        group.allreduce([torch.ones(1)]).wait()


def test_a_process_in_a_collective_that_nobody_answers_ends_with_the_watchdogs_code() -> None:
    port = free_port()
    engine = multiprocessing.get_context("fork").Process(target=_engine, args=(port,))
    engine.start()
    try:
        silent = _group(1, port)
        engine.join(SOON)
        assert engine.exitcode == EXIT_CODE
        del silent
    finally:
        engine.kill()
        engine.join()
