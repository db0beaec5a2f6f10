# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` with data parallelism, from outside: one request, bursts, one again, idleness, a killed worker and the next
server on the same ports, a stopped worker, a rank's own server that ends. Answers are the oracle's; no server outlives its
test."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.environment import free_port
from tests.support.processes import result_of, under_virtual_npu
from tests.support.server import Server
from vllm_ascend_patch.core.dp.watchdog import EXIT_CODE

from .online import START_SECONDS, WATCHDOG_SECONDS, answer, ask, burst, conversation, serve

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("online")
    return result_of(under_virtual_npu("-m", "tests.support.checkpoint", str(folder), "qwen3_moe", seconds=400))


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {"http": free_port(), "rpc": free_port(), "master": free_port()}


# ranks, transport, arguments, what the log must say
DEVICE = (2, "device", (), r"one device all-reduce of 128 bytes per step over 2 ranks")
AUTO = (
    4,
    "auto",
    ("--no-async-scheduling",),
    r"DP metadata transport: (cpu|device|shared) \(measured .* cpu \d+ us, device \d+ us, shared \d+ us\)",
)


@pytest.mark.parametrize(
    ("size", "transport", "more", "logged"), [DEVICE, AUTO], ids=["dp2-device", "dp4-auto-no-async-scheduling"]
)
def test_a_server_answers_alone_in_bursts_and_after_idling(
    size: int,
    transport: str,
    more: tuple[str, ...],
    logged: str,
    checkpoint: dict[str, Any],
    ports: dict[str, int],
    tmp_path: Path,
) -> None:
    idle = float(os.environ.get("DP_ONLINE_IDLE_SECONDS", "60"))
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    with serve(checkpoint, ports, tmp_path, size, transport, more, PROMETHEUS_MULTIPROC_DIR=str(metrics)) as server:
        server.wait_until_ready(START_SECONDS)
        conversation(server, checkpoint, size, idle)
        text = requests.get(f"{server.url}/metrics", timeout=20).text
    assert re.search(logged, server.log.read_text(errors="replace")), server.log_tail(200)
    counted = {int(rank): float(value) for rank, value in _counters(text, "steps")}
    assert sorted(counted) == list(range(size)), f"every rank's counters are on vLLM's endpoint: {counted}"
    assert len(set(counted.values())) == 1, f"all ranks ran the same steps: {counted}"
    exchanges = {int(rank): float(value) for rank, value in _counters(text, "exchanges")}
    assert exchanges == counted, "one exchange per step"
    assert not server.leftovers()


@pytest.mark.parametrize("transport", ["cpu", "auto"])
def test_survivors_of_a_killed_worker_name_it_and_the_next_server_takes_the_same_ports(
    transport: str, checkpoint: dict[str, Any], ports: dict[str, int], tmp_path: Path
) -> None:
    with serve(checkpoint, ports, tmp_path, 2, transport) as server:
        server.wait_until_ready(START_SECONDS)
        ask(server, checkpoint, 0)
        victim = _worker(server, rank=1)
        others = [p for p in server.family() if p.pid != victim.pid]
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(answer, server, checkpoint["cases"][0]["prompt"], 400)
            time.sleep(2)  # in the middle of decoding
            victim.send_signal(signal.SIGKILL)
            start = time.monotonic()
            assert server.process.wait(4 * WATCHDOG_SECONDS) == EXIT_CODE
            assert pending.exception() is not None, "the request could not be answered"
        assert time.monotonic() - start < 4 * WATCHDOG_SECONDS
        _, left = psutil.wait_procs(others, timeout=2 * WATCHDOG_SECONDS)
        assert not left, f"survivors are still there: {left}"
        log = server.log.read_text(errors="replace")
        assert re.search(r"rank 1 \(pid", log), "no survivor named the rank that died\n" + server.log_tail(80)
    with serve(checkpoint, ports, tmp_path, 2, transport) as server:
        server.wait_until_ready(START_SECONDS)
        ask(server, checkpoint, 0)
    assert not list(Path("/dev/shm").glob("vllm_ascend_patch.*")), "no shared memory is left"
    assert not server.family(), "nothing is left"


@pytest.mark.parametrize("transport", ["device", "auto"])
def test_a_worker_that_stops_ends_the_server_although_every_process_is_alive(
    transport: str, checkpoint: dict[str, Any], ports: dict[str, int], tmp_path: Path
) -> None:
    """vLLM's own supervision sees living processes, and the health check stays green: only the watchdog finds this."""
    with serve(checkpoint, ports, tmp_path, 2, transport) as server:
        server.wait_until_ready(START_SECONDS)
        ask(server, checkpoint, 0)
        victim = _worker(server, rank=1)
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(answer, server, checkpoint["cases"][0]["prompt"], 400)
            time.sleep(2)
            victim.send_signal(signal.SIGSTOP)
            try:
                server.process.wait(6 * WATCHDOG_SECONDS)
            finally:
                victim.kill()
            assert pending.exception() is not None
        log = server.log.read_text(errors="replace")
        named = re.search(r"(no heartbeat for more than|limit|in phase .* for) 15 s.* rank 1 \(pid", log)
        assert named, "no survivor named the rank that stopped, after the time that was set\n" + server.log_tail(80)
        psutil.wait_procs(server.family(), timeout=20)  # Python's resource tracker ends after everybody else
        assert not server.family(), "nothing is left"


def test_a_rank_that_is_busy_outside_a_step_is_waited_for_and_the_request_is_answered(
    checkpoint: dict[str, Any], ports: dict[str, int], tmp_path: Path
) -> None:
    more = ("--worker-extension-cls", "tests.dp.busy_extension.BusyWorker")
    with serve(
        checkpoint, ports, tmp_path, 2, "auto", more, VLLM_SERVER_DEV_MODE="1", VLLM_ASCEND_PATCH_DP_TIMEOUT="6"
    ) as server:
        server.wait_until_ready(START_SECONDS)
        ask(server, checkpoint, 0)
        time.sleep(2)  # the ranks pause
        with ThreadPoolExecutor(1) as pool:
            call: dict[str, Any] = {"method": "keep_busy", "args": ["1", "20"], "timeout": 60}
            busy = pool.submit(requests.post, f"{server.url}/collective_rpc", json=call, timeout=60)
            time.sleep(2)
            start = time.monotonic()
            case = checkpoint["cases"][1]
            tokens = answer(server, case["prompt"], len(case["answer"]), {"X-data-parallel-rank": "0"})
            assert tokens == case["answer"]
            assert time.monotonic() - start > 12, "rank 1 took part in the step although it was busy"
            assert busy.result().ok
        burst(server, checkpoint, 4)
        log = server.log.read_text(errors="replace")
    said = re.findall(r"rank 0 has waited .* for rank 1 \(pid .*runs BusyWorker.keep_busy.*It is alive", log)
    assert len(said) >= 2, server.log_tail(80)
    assert "RankMissingError" not in log


def test_a_request_after_another_ranks_server_has_ended_fails_with_its_rank_and_host(
    checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    """Each rank has a server of its own, behind somebody else's load balancer: no front end knows that one is gone."""
    rpc, master = free_port(), free_port()

    def of_rank(rank: int) -> Server:
        own = {"http": free_port(), "rpc": rpc, "master": master}
        folder = tmp_path / str(rank)
        folder.mkdir()
        return serve(checkpoint, own, folder, 2, "auto", ("--data-parallel-rank", str(rank)))

    with of_rank(0) as first, of_rank(1) as second:
        first.wait_until_ready(START_SECONDS)
        second.wait_until_ready(START_SECONDS)
        ask(first, checkpoint, 0)
        time.sleep(3)  # the ranks pause
        second.stop()
        with pytest.raises((AssertionError, requests.RequestException)):
            answer(first, checkpoint["cases"][0]["prompt"], 20)
        first.process.wait(4 * WATCHDOG_SECONDS)
        log = first.log.read_text(errors="replace")
    fatal = re.findall(r"\(EngineCore_DP0 \S+ ERROR .*?\] (?:[\w.]*\.)?(\w+Error: .*)", log)
    assert fatal, first.log_tail(80)
    assert re.search(rf"rank 1 \(pid \d+ on {os.uname().nodename}\)", fatal[-1]), fatal[-1]


def _counters(text: str, name: str) -> list[tuple[str, str]]:
    return re.findall(rf'^vllm_ascend_patch_dp_{name}_total{{dp_rank="(\d+)"}} (\S+)$', text, re.MULTILINE)


def _worker(server: Server, rank: int) -> psutil.Process:
    """The worker process of a data-parallel rank, by the pid it logged at start-up."""
    found = re.findall(rf"\(Worker_DP{rank}\S* pid=(\d+)\)", server.log.read_text(errors="replace"))
    assert found, server.log_tail()
    return psutil.Process(int(found[-1]))
