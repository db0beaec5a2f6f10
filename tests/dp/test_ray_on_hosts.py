# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` over a Ray cluster of two hosts: Ray as executor, and as data-parallel backend. Answers are the oracle's.

Ray is not among the pinned packages; ``nox -s ray`` installs it in a folder of its own and runs these.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import ROOT, clean_environment, free_port
from tests.support.hosts import Host, two_hosts, why_not
from tests.support.npus import virtual_npu_command
from tests.support.processes import kill_session, result_of, start, under_virtual_npu
from tests.support.server import Server

from .online import START_SECONDS, ask, burst, conversation, serve

RAY = find_spec("ray")
REASON = "Ray is not installed; nox -s ray installs it and runs this" if RAY is None else why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.serve,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]

PLACE = Path(RAY.origin).parents[1] if RAY is not None and RAY.origin is not None else ROOT
EVERYWHERE = {
    "PYTHONPATH": f"{ROOT}:{PLACE}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_ASCEND_PATCH": "1",
    "OMP_NUM_THREADS": "1",
}
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Cluster:
    """Two hosts that are Ray's nodes, and the address of the cluster."""

    hosts: tuple[Host, Host]
    address: str


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ray")
    return result_of(under_virtual_npu("-m", "tests.support.checkpoint", str(folder), "qwen2_moe", seconds=400))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Each host has one virtual NPU, which Ray counts by itself."""
    with contextlib.ExitStack() as stack:
        # Ray's sockets are in there, whose paths have a limit: a short name. So are notes about the node: each its own.
        sessions = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        hosts = stack.enter_context(two_hosts(tmp_path_factory.mktemp("hosts")))
        for host in hosts:
            subprocess.run(host.command(["mount", "-t", "tmpfs", "sessions", sessions]), check=True)
        address = f"{hosts[0].address}:{free_port()}"
        head = ("--head", f"--port={address.partition(':')[2]}", f"--temp-dir={sessions}", "--include-dashboard=false")
        stack.enter_context(_node(hosts[0], *head))
        stack.enter_context(_node(hosts[1], f"--address={address}"))
        yield Cluster(hosts, address)


@contextlib.contextmanager
def _node(host: Host, *place: str) -> Iterator[None]:
    """A node of the cluster; it has joined when this is entered."""
    options = [f"--node-ip-address={host.address}", "--num-cpus=2", f"--object-store-memory={200 * MEBIBYTE}"]
    options += ["--disable-usage-stats", "--block"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, *options]
    node = start(host.command(virtual_npu_command(ray, devices=1)), clean_environment(**EVERYWHERE))
    try:
        assert node.stdout is not None
        lines: list[str] = []
        while not lines or ("Ray runtime started" not in lines[-1] and lines[-1]):
            lines.append(node.stdout.readline())
        assert lines[-1], f"no node of Ray on {host.name}, exit code {node.wait()}\n{''.join(lines)}"
        yield
    finally:
        kill_session(node)
        node.wait()


def _resources(cluster: Cluster) -> dict[str, float]:
    code = (
        f"import ray, tests.support.processes as p; ray.init({cluster.address!r}, log_to_driver=False)\n"
        "p.report(ray.cluster_resources())"
    )
    done = subprocess.run(
        cluster.hosts[0].command([sys.executable, "-c", code]),
        env=clean_environment(**EVERYWHERE),
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: dict[str, float] = result_of(done)
    return found


def served(cluster: Cluster, checkpoint: dict[str, Any], folder: Path, size: int, *more: str) -> Server:
    """A server on the first host, whose ranks Ray places."""
    ports = {"http": free_port(), "rpc": free_port(), "master": free_port()}
    extra = {"RAY_ADDRESS": cluster.address, **EVERYWHERE}
    return serve(checkpoint, ports, folder, size, "auto", more, host=cluster.hosts[0], devices=1, **extra)


def workers_on(host: Host, log: str) -> bool:
    """Whether Ray shows the output of a worker there; it names no address where that is the driver's own."""
    return re.search(rf"ip={re.escape(host.address)}\)", log) is not None


def test_ray_counts_the_npus_of_both_hosts(cluster: Cluster) -> None:
    deadline = time.monotonic() + 60
    while (npus := _resources(cluster).get("NPU")) != 2 and time.monotonic() < deadline:
        time.sleep(1)
    assert npus == 2


def test_ray_places_tensor_parallel_workers_on_both_hosts(
    cluster: Cluster, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    more = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "ray")
    with served(cluster, checkpoint, tmp_path, 1, *more) as server:
        server.wait_until_ready(START_SECONDS)
        ask(server, checkpoint, 0)
        burst(server, checkpoint, 4)
    assert workers_on(cluster.hosts[1], server.log.read_text(errors="replace")), server.log_tail(80)
    assert not server.leftovers()


def test_ray_places_data_parallel_ranks_on_both_hosts(
    cluster: Cluster, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    more = (
        *("--data-parallel-backend", "ray", "--data-parallel-size-local", "1"),
        *("--data-parallel-address", cluster.hosts[0].address),
    )
    with served(cluster, checkpoint, tmp_path, 2, *more) as server:
        server.wait_until_ready(START_SECONDS)
        conversation(server, checkpoint, 2, idle=1)
    log = server.log.read_text(errors="replace")
    assert workers_on(cluster.hosts[1], log), server.log_tail(80)
    assert re.search(r"shared memory is no candidate: rank \d cannot open /dev/shm/", log), server.log_tail(80)
    assert not server.leftovers()
