#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a step waits for data-parallel metadata: the step vector against upstream's untouched code, in one run, in real
engine steps.

    python benchmarks/dp_sync.py --ranks 2 4 8 [--runner v2]

An engine per number of ranks; blocks of requests alternate between the two variants. "balanced": the same work on every
rank; "unbalanced": requests of very different lengths, fewer than ranks at the end. The transport is the one that start-up
finds the fastest, unless VLLM_ASCEND_PATCH_DP_SYNC says another. Times are host times in microseconds of steps with real
work. "exposed" is everything that the step pays: for upstream the call of its all-reduce, for the step vector computing and
posting the vote plus what is left to wait. On model runner V2 it is the function that chooses the step's graph and agrees on
it, for the step vector with what an eager step waits for later. On simulated devices this says what the host pays, nothing
about a device. On fewer cores than ranks, waits measure the operating system's scheduler: who runs last waits for nobody.
The last line is JSON: the rows, and the ratio of the exposed medians (ours to upstream's) of the balanced scenario at the
largest number of ranks that has a core each, against the goal of a tenth.
"""

from __future__ import annotations

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=8)

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.support.engine import Engine, engine_arguments, settled
from vllm_ascend_patch.releases.runner import VARIABLE

LISTS = ("waits", "votes", "posts", "preparations")
"""What a rank keeps of each step, in microseconds."""

VARIANTS = ("upstream", "ours")
GOAL = 0.1


def tiny_model(folder: Path) -> str:
    """A two-layer MoE configuration; weights are random, since only times are of interest."""
    from transformers import Qwen3MoeConfig

    configuration = Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    configuration.save_pretrained(folder)
    return str(folder)


async def measure(ranks: int, model: str, blocks: int, tokens: int, folder: str) -> None:
    """Run one engine and let every rank write what it measured below ``folder``."""
    arguments = engine_arguments(
        model,
        load_format="dummy",
        enable_expert_parallel=True,
        max_num_seqs=8,
        distributed_executor_backend="uni",
        worker_extension_cls="benchmarks.dp_sync_worker.TimedWorker",
    )
    scenarios = {
        "balanced": [(8, tokens)] * (4 * ranks),
        "unbalanced": [(5 + 60 * (i % 4), tokens // (1 + i % 5)) for i in range(3 * ranks - 1)],
    }
    async with Engine(arguments, ranks) as engine:

        async def calls() -> list[str]:
            await engine.ask("write_calls", folder)
            return [path.read_text() for path in sorted(Path(folder).glob("calls.rank*"))]

        async def quiet() -> None:
            """Return when no rank runs dummy steps any more: a variant may only change between steps of all ranks."""
            await settled(calls, pause=0.5)

        async def generate(length: int, count: int) -> None:
            await engine.generate([3 + i % 400 for i in range(length)], count)

        await generate(4, 4)
        for block in range(blocks):
            for scenario, requests in scenarios.items():
                for variant in VARIANTS if block % 2 else VARIANTS[::-1]:
                    await quiet()
                    await engine.ask("begin_block", variant)
                    await asyncio.gather(*(generate(*request) for request in requests))
                    await quiet()
                    await engine.ask("end_block", variant, scenario, folder)


def collect(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All ranks' measurements by (scenario, variant)."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("rank*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            cell = merged.setdefault(
                (line["scenario"], line["variant"]),
                {"calls": 0, "bytes": line["bytes"], "transport": line["transport"]} | {key: [] for key in LISTS},
            )
            for key in LISTS:
                cell[key] += line[key]
            cell["calls"] += line["calls"]
    return merged


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def report(ranks: int, merged: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per scenario."""
    rows = []
    for scenario in ("balanced", "unbalanced"):
        upstream, ours = merged[(scenario, "upstream")], merged[(scenario, "ours")]
        steps = zip(ours["votes"], ours["posts"], ours["waits"], strict=False)
        exposed = [sum(parts) for parts in steps]
        announced = statistics.median(ours["votes"]) + statistics.median(ours["posts"])
        prepared = statistics.median(ours["preparations"]) - announced
        rows.append(
            {
                "ranks": ranks,
                "scenario": scenario,
                "transport": ours["transport"],
                "steps": len(ours["waits"]),
                "upstream_p50": percentile(upstream["waits"], 0.5),
                "upstream_p99": percentile(upstream["waits"], 0.99),
                "wait_p50": percentile(ours["waits"], 0.5),
                "wait_p99": percentile(ours["waits"], 0.99),
                "vote_p50": percentile(ours["votes"], 0.5),
                "post_p50": percentile(ours["posts"], 0.5),
                "exposed_p50": percentile(exposed, 0.5),
                "wait_ratio": percentile(ours["waits"], 0.5) / percentile(upstream["waits"], 0.5),
                "exposed_ratio": percentile(exposed, 0.5) / percentile(upstream["waits"], 0.5),
                "hidden_share": prepared / (prepared + percentile(ours["waits"], 0.5)),
                "upstream_transport": upstream["transport"],
                "upstream_exchanges": upstream["calls"],
                "upstream_bytes": upstream["bytes"],
                "ours_exchanges": ours["calls"],
                "ours_bytes": ours["bytes"],
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140)
    times = Table(title="Wait for data-parallel metadata per step, microseconds of host time")
    for column in (
        "ranks",
        "scenario",
        "transport",
        "steps",
        "upstream p50",
        "p99",
        "ours: wait p50",
        "p99",
        "vote p50",
        "post p50",
        "wait ratio",
        "exposed ratio",
        "hidden",
    ):
        times.add_column(column, justify="right")
    for row in rows:
        times.add_row(
            *(str(row[k]) for k in ("ranks", "scenario", "transport", "steps")),
            *(
                f"{row[k]:.0f}"
                for k in ("upstream_p50", "upstream_p99", "wait_p50", "wait_p99", "vote_p50", "post_p50")
            ),
            f"{row['wait_ratio']:.2f}",
            f"{row['exposed_ratio']:.2f}",
            f"{row['hidden_share']:.0%}",
        )
    console.print(times)
    counts = Table(
        title="Exchanges, one per forward, real or dummy (drafters: upstream up to two more each step, ours none)"
    )
    for column in ("ranks", "scenario", "variant", "transport", "exchanges", "bytes each"):
        counts.add_column(column, justify="right")
    for row in rows:
        for variant in VARIANTS:
            counts.add_row(
                str(row["ranks"]),
                row["scenario"],
                variant,
                row["transport"] if variant == "ours" else row["upstream_transport"],
                str(row[f"{variant}_exchanges"]),
                str(row[f"{variant}_bytes"]),
            )
    console.print(counts)
    console.print(f"{os.cpu_count()} cores; ratios are of medians; exposed = vote + post + wait")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2], help="data-parallel sizes")
    parser.add_argument("--runner", choices=("v1", "v2"), default="v1", help="vLLM's model runner, for both variants")
    parser.add_argument("--blocks", type=int, default=2, help="blocks per scenario and variant")
    parser.add_argument(
        "--tokens", type=int, default=40, help="tokens that a request of the balanced scenario generates"
    )
    arguments = parser.parse_args()
    os.environ[VARIABLE] = str(int(arguments.runner == "v2"))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        model = tiny_model(Path(temporary, "model"))
        for ranks in arguments.ranks:
            folder = Path(temporary, str(ranks))
            folder.mkdir()
            asyncio.run(measure(ranks, model, arguments.blocks, arguments.tokens, str(folder)))
            rows += report(ranks, collect(folder))
    show(rows)
    balanced = [row for row in rows if row["scenario"] == "balanced"]
    judged = [row for row in balanced if row["ranks"] <= (os.cpu_count() or 1)] or balanced
    ratio = judged[-1]["exposed_ratio"]
    print(json.dumps({"name": "dp_sync", "runner": arguments.runner, "figures": rows, "ratio": ratio, "goal": GOAL}))


if __name__ == "__main__":
    main()
