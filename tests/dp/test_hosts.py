# SPDX-License-Identifier: Apache-2.0
"""The step sync over two hosts: no shared memory between them; a pulled cable, a paused host, a killed one are errors that
name rank and host on every survivor, which exits non-zero."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import free_port, without_devices
from tests.support.hosts import Host, two_hosts, why_not
from tests.support.processes import kill_session, result_of, start

TIMEOUT = 3.0
ENDLESS = 1_000_000

REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as made:
        yield made


def world(where: list[Host], steps: int, *awaited: str) -> list[subprocess.Popen[str]]:
    """A rank on each host that is listed; returns when all have stepped and know of each other.

    Args:
        awaited: the rank for which the others wait in a collective of the last step's forward.
    """
    port = free_port()
    ranks = []
    for number, host in enumerate(where):
        arguments = [str(number), str(len(where)), where[0].address, str(port), str(TIMEOUT), str(steps), *awaited]
        command = host.command([sys.executable, "-m", "tests.dp.rank_on_a_host", *arguments])
        ranks.append(start(command, without_devices()))
    for rank in ranks:
        assert rank.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] not in ("serving\n", ""):
            lines.append(rank.stdout.readline())
        assert lines[-1], f"a rank ended with {rank.wait()} at its start\n{''.join(lines)}"
    return ranks


def ends(ranks: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, Any]]:
    """Exit code and report of each rank."""
    found = []
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=seconds)
            done = subprocess.CompletedProcess(rank.args, rank.returncode, output, "")
            found.append((rank.returncode, result_of(done)))
    finally:
        for rank in ranks:
            kill_session(rank)
            rank.wait()
    return found


def test_over_two_hosts_there_is_no_shared_memory_and_a_pulled_cable_is_an_error_on_both(
    hosts: tuple[Host, Host],
) -> None:
    first, second = hosts
    ranks = world([first, second], ENDLESS)
    second.pull_cable()
    pulled = time.monotonic()
    (code, left), (other_code, right) = ends(ranks, seconds=10 * TIMEOUT)
    assert time.monotonic() - pulled < 3 * TIMEOUT
    assert (left["transport"], right["transport"]) == ("cpu", "cpu")
    assert any(
        "shared memory is no candidate: rank 1 cannot open /dev/shm/vllm_ascend_patch." in line for line in left["log"]
    )
    assert (code, other_code) == (1, 1)
    assert "RankMissingError" in left["error"]
    assert "RankMissingError" in right["error"]
    assert f" on {second.name})" in left["error"]
    assert "rank 1 (pid" in left["error"]
    assert f" on {first.name})" in right["error"]
    assert "rank 0 (pid" in right["error"]


@pytest.mark.slow
def test_among_ranks_of_one_host_shared_memory_is_taken_if_it_is_the_fastest(hosts: tuple[Host, Host]) -> None:
    for rank, (code, found) in enumerate(ends(world([hosts[0], hosts[0]], steps=200), seconds=60)):
        assert code == 0
        assert not any("no candidate" in line for line in found["log"])
        if rank == 0:
            measured = next(line for line in found["log"] if "measured" in line)
            times = {name: int(us) for name, us in re.findall(r"(cpu|shared) (\d+) us", measured)}
            assert set(times) == {"cpu", "shared"}
            assert times[found["transport"]] == min(times.values())


@pytest.mark.slow
def test_memory_that_some_ranks_share_is_not_taken(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    for code, rank in ends(world([first, first, second, second], steps=200), seconds=30):
        assert code == 0
        assert rank["transport"] == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["with-the-store", "other"])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["paused", "killed"])
def test_a_host_that_is_paused_or_killed_is_named_with_its_rank(
    number: signal.Signals, lost: int, hosts: tuple[Host, Host]
) -> None:
    ranks = world(list(hosts), ENDLESS)
    survivor = ranks.pop(1 - lost)
    hosts[lost].send(number)
    begun = time.monotonic()
    try:
        ((code, found),) = ends([survivor], seconds=10 * TIMEOUT)
    finally:
        for rank in ranks:
            kill_session(rank)
            rank.wait()
    assert time.monotonic() - begun < 3 * TIMEOUT
    assert code == 1
    assert f"rank {lost} (pid" in found["error"]
    assert f" on {hosts[lost].name})" in found["error"]


@pytest.mark.slow
def test_a_host_that_is_killed_while_the_other_is_in_a_collective_of_the_forward_is_named(
    hosts: tuple[Host, Host],
) -> None:
    survivor, lost = world(list(hosts), 100, "1")
    assert survivor.stdout is not None
    assert "waiting\n" in survivor.stdout, "it came to the last step"
    time.sleep(0.5)
    hosts[1].send(signal.SIGKILL)
    try:
        ((code, found),) = ends([survivor], seconds=10 * TIMEOUT)
    finally:
        kill_session(lost)
        lost.wait()
    assert code == 1
    assert "gloo" in found["error"], "the collective's own error, which names no host"
    named = rf"rank 0 cannot go on: data-parallel step \d+: a collective broke .*rank 1 \(pid \d+ on {hosts[1].name}\)"
    assert any(re.search(named, line) for line in found["log"]), found["log"]
