# SPDX-License-Identifier: Apache-2.0
"""A server with data parallelism over a tiny model, and how it is asked: alone, in bursts, after idling. Answers are the
oracle's. What is tested stands in the tests."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from tests.support.hosts import Host
from tests.support.server import Server

START_SECONDS = 500.0
WATCHDOG_SECONDS = 15.0


def serve(
    checkpoint: dict[str, Any],
    ports: dict[str, int],
    folder: Path,
    size: int,
    transport: str = "cpu",
    more: tuple[str, ...] = (),
    *,
    host: Host | None = None,
    devices: int | None = None,
    **extra: str,
) -> Server:
    arguments = [
        *(
            "--port",
            str(ports["http"]),
            "--data-parallel-size",
            str(size),
            "--data-parallel-rpc-port",
            str(ports["rpc"]),
        ),
        *("--enable-expert-parallel", "--skip-tokenizer-init", "--dtype", "float16", "--enforce-eager"),
        *("--max-model-len", "512", "--max-num-seqs", "8", "--max-num-batched-tokens", "128"),
        *("--gpu-memory-utilization", "0.3", *(() if "--headless" in more else ("--api-server-count", "1"))),
        *more,
    ]
    environment = {
        "VLLM_ASCEND_PATCH": "1",
        "VLLM_ASCEND_PATCH_DP_SYNC": transport,
        "VLLM_ASCEND_PATCH_DP_TIMEOUT": str(WATCHDOG_SECONDS),
        "VLLM_DP_MASTER_PORT": str(ports["master"]),
        "OMP_NUM_THREADS": "1",
        **extra,
    }
    server = Server(
        checkpoint["path"], arguments, environment, folder / "server.log", devices=devices or size, host=host
    )
    server.port, server.url = ports["http"], f"http://{server.address}:{ports['http']}"  # the last --port counts
    return server


def answer(server: Server, prompt: list[int], tokens: int, headers: dict[str, str] | None = None) -> list[int]:
    body: dict[str, Any] = {
        "model": server_model(server),
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "detokenize": False,
        "return_token_ids": True,
    }
    with server.reach():
        reply = requests.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=120)
    assert reply.ok, f"{reply.status_code}: {reply.text[:500]}\n{server.log_tail()}"
    return reply.json()["choices"][0]["token_ids"]


def server_model(server: Server) -> str:
    with server.reach():
        return requests.get(f"{server.url}/v1/models", timeout=10).json()["data"][0]["id"]


def ask(server: Server, checkpoint: dict[str, Any], index: int) -> None:
    case = checkpoint["cases"][index]
    assert answer(server, case["prompt"], len(case["answer"])) == case["answer"], f"case {index}"


def burst(server: Server, checkpoint: dict[str, Any], count: int) -> None:
    indices = [i % len(checkpoint["cases"]) for i in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda index: ask(server, checkpoint, index), indices))


def conversation(server: Server, checkpoint: dict[str, Any], size: int, idle: float) -> None:
    ask(server, checkpoint, 0)
    burst(server, checkpoint, 4 * size)
    if size > 1:
        burst(server, checkpoint, size - 1)
    ask(server, checkpoint, 3)
    time.sleep(idle)
    ask(server, checkpoint, 1)
