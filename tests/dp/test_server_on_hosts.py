# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` over two hosts: headless, with hybrid and external load balancing, tensor parallel inside of each; then a
cable that is pulled, a host that is killed or paused. Answers are the oracle's."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.environment import free_port
from tests.support.hosts import Host, two_hosts, why_not
from tests.support.processes import result_of, under_virtual_npu
from tests.support.server import Server
from vllm_ascend_patch.core.dp.watchdog import EXIT_CODE

from .online import START_SECONDS, WATCHDOG_SECONDS, answer, ask, burst, conversation, serve

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
    tp: int = 1,
    method: str = "auto",
) -> Iterator[Pair]:
    """A server on each host for half of the ranks, ready when the first answers; ``own`` gives the arguments of each."""
    ports = {"http": free_port(), "rpc": free_port(), "master": free_port()}
    with contextlib.ExitStack() as stack:
        servers = []
        for number, host in enumerate(hosts):
            there = folder / host.name
            there.mkdir()
            more = ("--data-parallel-address", hosts[0].address, "--tensor-parallel-size", str(tp), *own(number))
            variables = {"VLLM_ASCEND_PATCH_MOE_COMM": method}
            server = serve(checkpoint, ports, there, size, "auto", more, host=host, devices=size * tp // 2, **variables)
            servers.append(stack.enter_context(server))
        first, second = servers
        first.wait_until_ready(START_SECONDS)
        yield first, second


def headless(size: int) -> Callable[[int], tuple[str, ...]]:
    """Host 0 has the only API server."""
    local = ("--data-parallel-size-local", str(size // 2))
    second = ("--headless", "--data-parallel-start-rank", str(size // 2), *local)
    return lambda number: second if number else local


def hybrid(size: int) -> Callable[[int], tuple[str, ...]]:
    """Each host has an API server for its own ranks."""
    local = ("--data-parallel-hybrid-lb", "--data-parallel-size-local", str(size // 2))
    return lambda number: (*local, "--data-parallel-start-rank", str(number * size // 2))


def external(number: int) -> tuple[str, ...]:
    """Each rank has an API server."""
    return "--data-parallel-rank", str(number)


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


def test_hybrid_load_balancing_answers_on_both_hosts(
    checkpoint: dict[str, Any], hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    with deployment(checkpoint, hosts, tmp_path, 4, hybrid(4)) as pair:
        pair[1].wait_until_ready(START_SECONDS)
        for server in pair:
            conversation(server, checkpoint, 2, idle=1)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda server: burst(server, checkpoint, 4), pair))
    no_shared_memory(pair[0])
    nothing_is_left(pair)


def test_external_load_balancing_answers_on_both_hosts(
    checkpoint: dict[str, Any], hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    with deployment(checkpoint, hosts, tmp_path, 2, external) as pair:
        pair[1].wait_until_ready(START_SECONDS)
        for server in pair:
            conversation(server, checkpoint, 1, idle=1)
        ask(pair[1], checkpoint, 2)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda server: burst(server, checkpoint, 4), pair))
    no_shared_memory(pair[0])
    nothing_is_left(pair)


@pytest.mark.parametrize("method", ["auto", "hierarchical"])
def test_a_rank_of_two_tensor_parallel_workers_on_each_host(
    method: str, checkpoint: dict[str, Any], hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    with deployment(checkpoint, hosts, tmp_path, 2, headless(2), tp=2, method=method) as pair:
        conversation(pair[0], checkpoint, 2, idle=1)
    no_shared_memory(pair[0])
    nothing_is_left(pair)


def pull_the_cable(hosts: tuple[Host, Host]) -> None:
    hosts[1].pull_cable()


def kill_the_second(hosts: tuple[Host, Host]) -> None:
    hosts[1].send(signal.SIGKILL)


def pause_the_second(hosts: tuple[Host, Host]) -> None:
    hosts[1].send(signal.SIGSTOP)


@pytest.mark.parametrize(
    ("fault", "survivors"), [(pull_the_cable, (0, 1)), (kill_the_second, (0,)), (pause_the_second, (0,))]
)
def test_a_host_that_is_lost_in_the_middle_of_a_step_is_named_and_the_survivors_end(
    fault: Callable[[tuple[Host, Host]], None],
    survivors: tuple[int, ...],
    checkpoint: dict[str, Any],
    hosts: tuple[Host, Host],
    tmp_path: Path,
) -> None:
    with deployment(checkpoint, hosts, tmp_path, 2, headless(2)) as pair:
        ask(pair[0], checkpoint, 0)
        engines = [_engine(pair[number]) for number in survivors]
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(answer, pair[0], checkpoint["cases"][0]["prompt"], 400)
            time.sleep(2)  # in the middle of decoding
            fault(hosts)
            for number in survivors:
                other = 1 - number
                named = rf"(RankMissingError|cannot go on).*rank {other} \(pid \d+ on {hosts[other].name}\)"
                _wait_for(named, pair[number], WATCHDOG_SECONDS + 10)
            codes = [pair[number].process.wait(4 * WATCHDOG_SECONDS) for number in survivors]
            assert pending.exception() is not None, "the request could not be answered"
        _, left = psutil.wait_procs(engines, timeout=2 * WATCHDOG_SECONDS)
        assert not left, f"survivors are still there: {left}"
        assert set(codes) == {EXIT_CODE}


def _wait_for(pattern: str, server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not re.search(pattern, server.log.read_text(errors="replace")):
        assert time.monotonic() < deadline, f"nobody said {pattern} within {seconds:g} s\n{server.log_tail(80)}"
        time.sleep(0.2)


def _engine(server: Server) -> psutil.Process:
    found = re.findall(r"\(EngineCore\S* pid=(\d+)\)", server.log.read_text(errors="replace"))
    assert found, server.log_tail()
    return psutil.Process(int(found[-1]))
