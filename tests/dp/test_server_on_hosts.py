# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` over two hosts, one of them headless. Answers are the oracle's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import free_port
from tests.support.hosts import Host, two_hosts, why_not
from tests.support.processes import result_of, under_virtual_npu
from tests.support.server import Server

from .online import START_SECONDS, conversation, serve

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.serve,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]

Pair = tuple[Server, Server]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hosts")
    return result_of(under_virtual_npu("-m", "tests.support.checkpoint", str(folder), "qwen2_moe", seconds=400))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as made:
        yield made


@contextlib.contextmanager
def deployment(
    checkpoint: dict[str, Any],
    hosts: tuple[Host, Host],
    folder: Path,
    size: int,
    own: Callable[[int], tuple[str, ...]],
    method: str = "auto",
) -> Iterator[Pair]:
    """A server on each host for half of the ranks, ready when the first answers; ``own`` gives the arguments of each."""
    ports = {"http": free_port(), "rpc": free_port(), "master": free_port()}
    with contextlib.ExitStack() as stack:
        servers = []
        for number, host in enumerate(hosts):
            there = folder / host.name
            there.mkdir()
            more = ("--data-parallel-address", hosts[0].address, *own(number))
            variables = {"VLLM_ASCEND_PATCH_MOE_COMM": method}
            server = serve(checkpoint, ports, there, size, "auto", more, host=host, devices=size // 2, **variables)
            servers.append(stack.enter_context(server))
        first, second = servers
        first.wait_until_ready(START_SECONDS)
        yield first, second


def headless(size: int) -> Callable[[int], tuple[str, ...]]:
    """Host 0 has the only API server."""
    local = ("--data-parallel-size-local", str(size // 2))
    second = ("--headless", "--data-parallel-start-rank", str(size // 2), *local)
    return lambda number: second if number else local


def no_shared_memory(server: Server) -> None:
    log = server.log.read_text(errors="replace")
    assert re.search(r"shared memory is no candidate: rank \d cannot open /dev/shm/", log), server.log_tail(80)


def nothing_is_left(pair: Pair) -> None:
    for server in pair:
        assert not server.leftovers()


def test_four_ranks_over_two_hosts_with_one_api_server_by_the_hierarchical_method(
    checkpoint: dict[str, Any], hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    with deployment(checkpoint, hosts, tmp_path, 4, headless(4), method="hierarchical") as pair:
        conversation(pair[0], checkpoint, 4, idle=5)
    for server in pair:
        assert "MoE communication: hierarchical for" in server.log.read_text(errors="replace")
    no_shared_memory(pair[0])
    nothing_is_left(pair)
