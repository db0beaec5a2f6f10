# SPDX-License-Identifier: Apache-2.0
"""The demo: one request, then several at once, to stock vLLM on NPUs; prints what a person wants to see.

Exit status 0 only if every answer came, agrees with the oracle (transformers on the same weights), and nothing is left
behind. Needs the environment of ``scripts/setup_env.sh``.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from tests.support.environment import ROOT
from tests.support.npus import has_real_npus, npu_command
from tests.support.server import Server

from . import checkpoint
from .steps import StepSummary, summarise

FIRST = "What is the capital of France?"
TOGETHER = (
    "Write one sentence about the sea.",
    "Name three primary colors.",
    "What do bees make?",
    "Which planet do we live on?",
    "Say hello in one short sentence.",
)
# Two bfloat16 computations of the same logits differ by up to this much in this model (measured: transformers in bfloat16
# against float32 on the demo's own answers); only a choice that is closer than that may differ from the oracle's.
TOLERANCE = 0.75
READY_SECONDS = 240
console = Console(highlight=False)


@dataclass(frozen=True)
class Answer:
    """One chat completion: what was asked and answered, as text and as token ids."""

    question: str
    text: str
    prompt_tokens: list[int]
    tokens: list[int]
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-parallel", type=int, default=2, help="data parallel ranks, one NPU each (2)")
    parser.add_argument("--max-tokens", type=int, default=40, help="longest answer in tokens (40)")
    parser.add_argument("--soc", choices=("A2", "A3"), default="A2", help="kind of virtual NPU (A2)")
    parser.add_argument("--keep", type=Path, help="folder that keeps the server's log and the step traces")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: everything is cleaned up
    with tempfile.TemporaryDirectory(prefix="vllm-ascend-patch-demo-") as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return run(arguments, folder)
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/]")
            return 130


def run(arguments: argparse.Namespace, folder: Path) -> int:
    started = time.monotonic()
    npus = "real NPUs" if has_real_npus() else f"virtual NPUs ({arguments.soc})"
    console.rule(f"[bold]stock vLLM, a Mixture-of-Experts model, {arguments.data_parallel} {npus}")
    model = make_checkpoint()
    traces = folder / "trace.json"
    with console.status("starting vLLM …") as status:
        server = Server(
            model,
            [
                *("--served-model-name", "smollm2-moe", "--dtype", "bfloat16", "--max-model-len", "1024"),
                *("--data-parallel-size", str(arguments.data_parallel), "--enable-expert-parallel"),
                *("--max-num-seqs", "16", "--gpu-memory-utilization", "0.5", "--api-server-count", "1"),
                "--enforce-eager",  # starts sooner; without it the server compiles the model and captures graphs
            ],
            {"VLLM_ASCEND_PATCH": "1", "VLLM_ASCEND_PATCH_TRACE": str(traces), "VLLM_LOGGING_LEVEL": "INFO"},
            folder / "server.log",
            devices=arguments.data_parallel,
            soc=arguments.soc,
            on_line=lambda line: status.update(f"starting vLLM … [dim]{_brief(line)}"),
        )
        with server:
            server.wait_until_ready(READY_SECONDS)
            ready = time.monotonic()
            status.update("one request alone (fewer requests than ranks) …")
            answers = [ask(server, FIRST, arguments.max_tokens)]
            status.update(f"{len(TOGETHER)} requests at once …")
            together = time.monotonic()
            pool = ThreadPoolExecutor(len(TOGETHER))
            try:
                answers += pool.map(lambda question: ask(server, question, arguments.max_tokens), TOGETHER)
            finally:  # after Ctrl-C nobody waits for answers: the server is stopped, and they end with it
                pool.shutdown(wait=False, cancel_futures=True)
            together = time.monotonic() - together
            status.update("stopping vLLM …")
    left = server.leftovers()
    show(answers)
    with console.status("asking the oracle: transformers on the same weights …"):
        wrong = compare(model, answers)
    tokens = sum(len(answer.tokens) for answer in answers[1:])
    report(summarise(traces), devices_in(server.log), ready - started, tokens / together, time.monotonic() - started)
    for what in left:
        console.print(f"[red]left behind: {what}")
    return 1 if wrong or left else 0


def make_checkpoint() -> Path:
    """The checkpoint, made in a process of its own: transformers loads torch_npu, which needs its runtime."""
    folder = checkpoint.default_folder()
    if not (folder / "config.json").exists():
        with console.status("making the checkpoint: SmolLM2-135M-Instruct, upcycled to 4 experts per layer …"):
            command = npu_command([sys.executable, "-m", "scripts.demo.checkpoint", str(folder)], 1)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"making the checkpoint failed\n{done.stderr[-3000:]}")
    return folder


def ask(server: Server, question: str, max_tokens: int) -> Answer:
    """One greedy chat completion; raises with the server's log when it fails."""
    start = time.monotonic()
    body = {
        "model": "smollm2-moe",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        # Token ids in the form that every release of vLLM has.
        "logprobs": True,
        "return_tokens_as_token_ids": True,
    }
    choice = post(server, "/v1/chat/completions", body)["choices"][0]
    seconds = time.monotonic() - start
    tokens = [int(entry["token"].removeprefix("token_id:")) for entry in choice["logprobs"]["content"]]
    prompt = post(server, "/tokenize", {name: body[name] for name in ("model", "messages")})["tokens"]
    return Answer(question, choice["message"]["content"].strip(), prompt, tokens, seconds)


def post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = requests.post(server.url + path, json=body, timeout=120)
    if not reply.ok:
        raise SystemExit(f"the server answered {reply.status_code}: {reply.text[:500]}\n{server.log_tail()}")
    return reply.json()


def show(answers: list[Answer]) -> None:
    for answer in answers:
        console.print(Panel(answer.text, title=answer.question, title_align="left", border_style="cyan", width=100))


def compare(model: Path, answers: list[Answer]) -> int:
    """Print the oracle's verdict; return how many tokens are neither its choice nor as close as rounding allows."""
    oracle = [sys.executable, "-m", "scripts.demo.oracle"]
    command = npu_command([*oracle, str(model), "--dtype", "bfloat16", "--tolerance", str(TOLERANCE)], 1)
    pairs = [{"prompt": a.prompt_tokens, "answer": a.tokens} for a in answers]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(pairs), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the oracle failed\n{done.stderr[-3000:]}")
    verdicts = json.loads(done.stdout.splitlines()[-1])
    equal, ties = (sum(v[key] for v in verdicts) for key in ("equal", "ties"))
    wrong = [(a.question, *w) for a, v in zip(answers, verdicts, strict=True) for w in v["wrong"]]
    colour = "red" if wrong else "green"
    console.print(
        f"[{colour}]oracle:[/] {equal} of {equal + ties + len(wrong)} tokens are transformers' own choice (bfloat16), "
        f"{ties} differ where its top two logits are closer than {TOLERANCE}, {len(wrong)} are wrong"
    )
    for question, position, token, best, gap in wrong:
        console.print(f"  [red]{question}[/] token {position}: {token} instead of {best}, {gap:.2f} logits apart")
    return len(wrong)


def report(steps: StepSummary, devices: str, ready_seconds: float, tokens_per_second: float, total: float) -> None:
    table = Table(title="what happened", show_header=False, title_justify="left")
    table.add_row("devices", devices)
    table.add_row("engine steps", f"{steps.steps} on {steps.ranks} ranks, {steps.idle_steps} of them idle (dummy)")
    table.add_row("DP metadata exchanges per step", steps.exchanges)
    table.add_row("MoE communication", steps.methods)
    table.add_row("tokens per second", f"{tokens_per_second:.1f} with {len(TOGETHER)} requests at once")
    table.add_row("time", f"{ready_seconds:.0f} s to a ready server, {total:.0f} s in all")
    console.print(table)


def devices_in(log: Path) -> str:
    """The devices that the workers said they run on. Where vLLM shows each engine one device only, all have one number."""
    found = Counter(re.findall(r"NPU worker on (npu:\d+ \([^)]*\))", log.read_text(errors="replace")))
    words = [device if times == 1 else f"{times} x {device}" for device, times in sorted(found.items())]
    return ", ".join(words) or "no worker said so"


def _brief(line: str) -> str:
    text = line.split("] ", 1)[-1]
    return text[:90].replace("[", "(")


if __name__ == "__main__":
    sys.exit(main())
