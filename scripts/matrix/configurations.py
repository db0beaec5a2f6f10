# SPDX-License-Identifier: Apache-2.0
"""What is run on every release, and how its outcome is judged. Starting processes is ``runner.py``'s business."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.version import Version

from scripts.demo.steps import read_events
from vllm_ascend_patch.releases import runner
from vllm_ascend_patch.releases.graphs import full_graph_obstacle, graph_obstacle
from vllm_ascend_patch.releases.latent import latent_obstacle
from vllm_ascend_patch.releases.modelslim import modelslim_obstacle

MAX_TOKENS = 12
"""Enough to decode over a few steps; the oracle's margins hold for the first tokens as for all."""

ALONE = (0, 5)
"""Prompts that are asked one by one first, the other ranks being idle: of one token, and longer than the largest graph."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One engine: ``tp`` x ``dp`` NPUs of ``soc``.

    Attributes:
        family: of the tiny model (``tests/support/checkpoint.py``).
        force: methods that are forced one after the other, once the engine has served with its own choice.
        takes: methods that have to be taken in all.
        arguments: further engine arguments.
        environment: further environment variables.
        graphs: the model is compiled and captured, and every worker has to replay.
        latent: the model has multi-head latent attention; releases that do not serve it have to refuse it.
        modelslim: the checkpoint is ModelSlim's; releases that do not serve it have to refuse it.
        whole_steps: decode steps are captured whole, and every worker has to replay such graphs.
        since: the first release that it is run on.
    """

    name: str
    tp: int
    dp: int
    family: str
    soc: str
    takes: frozenset[str]
    force: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    graphs: bool = False
    latent: bool = False
    modelslim: bool = False
    whole_steps: bool = False
    since: str = "0.10"

    def job(self, model: Path, prompts: list[list[int]], folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        """The job for ``engine.py``; its workers write into ``folder``. ``arguments`` are the release's."""
        return {
            "model": str(model),
            "tp": self.tp,
            "dp": self.dp,
            "ep": self.dp > 1,
            "prompts": prompts,
            "alone": ALONE,
            "max_tokens": MAX_TOKENS,
            "force": self.force,
            "folder": str(folder),
            "arguments": {
                "enable_chunked_prefill": True,  # the default in newer releases only
                "worker_extension_cls": "scripts.matrix.worker.MatrixWorker",
                "enforce_eager": not self.graphs,
                **({"compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}} if self.whole_steps else {}),
                **self.arguments,
                **arguments,
            },
        }


CONFIGURATIONS: dict[str, Configuration] = {
    # Engine and worker in one process.
    "1": Configuration(
        name="one device",
        tp=1,
        dp=1,
        family="qwen2_moe",
        soc="A2",
        takes=frozenset({"allgather"}),
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    ),
    # A DeepSeek-V3 shape: prompts in chunks over context, and a shared prefix.
    "mla": Configuration(
        name="MLA, one device",
        tp=1,
        dp=1,
        family="deepseek_v3",
        soc="A2",
        takes=frozenset({"allgather"}),
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        latent=True,
    ),
    # Wide enough for MC2 on A3, where decoding then goes through MC2 and long prompts, on so few ranks, through AllGather.
    # The worker shares the process of its engine.
    "dp2": Configuration(
        name="DP 2, EP",
        tp=1,
        dp=2,
        family="mixtral_wide",
        soc="A3",
        takes=frozenset({"mc2", "allgather"}),
        arguments={"distributed_executor_backend": "uni"},
        # Step vectors are counted by the dispatcher, which sees nothing of shared memory.
        environment={"VLLM_ASCEND_PATCH_DP_SYNC": "cpu"},
    ),
    # The family with a shared expert, whose reduction over TP differs most between releases.
    "tp2dp2": Configuration(
        name="TP 2 x DP 2, EP",
        tp=2,
        dp=2,
        family="qwen2_moe",
        soc="A2",
        takes=frozenset({"allgather", "mc2", "alltoall"}),
        force=("mc2", "alltoall"),
        # As above; and on the device, the sums over TP of this small model are as large as the vector.
        environment={"VLLM_ASCEND_PATCH_DP_SYNC": "cpu"},
    ),
    # int8 linear layers and experts, as compressed-tensors has them; the oracle quantises activations as the format says.
    "w8a8": Configuration(
        name="W8A8, one device",
        tp=1,
        dp=1,
        family="qwen2_moe-w8a8",
        soc="A2",
        takes=frozenset({"allgather"}),
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    ),
}
CONFIGURATIONS["modelslim"] = replace(
    CONFIGURATIONS["w8a8"], name="ModelSlim W8A8, one device", family="qwen2_moe-modelslim", modelslim=True
)
# Without a flag for eager: decoding is replayed, prompts are not. Releases that cannot are eager all the same.
CONFIGURATIONS["graphs"] = replace(CONFIGURATIONS["dp2"], name="DP 2, EP, graphs", graphs=True)
CONFIGURATIONS["full"] = replace(CONFIGURATIONS["graphs"], name="DP 2, EP, whole steps in graphs", whole_steps=True)
# Upstream's next model runner; the last release before those on which it is served says so.
CONFIGURATIONS["v2"] = replace(
    CONFIGURATIONS["dp2"],
    name="DP 2, EP, model runner V2",
    environment=CONFIGURATIONS["dp2"].environment | {runner.VARIABLE: "1"},
    since="0.31",
)


def obstacle(configuration: Configuration, release: str) -> str | None:
    """Why the configuration cannot be run on this release with the matrix's torch, in words."""
    if runner.VARIABLE in configuration.environment:
        return runner.v2_obstacle(release)
    why = graph_obstacle(release) if configuration.graphs else None
    return why or (full_graph_obstacle(release) if configuration.whole_steps else None)


def without(configuration: Configuration) -> str:
    """The outcome of a configuration that ``obstacle`` keeps from being run."""
    if runner.VARIABLE in configuration.environment:
        return "refused"
    return "pieces" if configuration.whole_steps else "eager"


def concerns(configuration: Configuration, release: str) -> bool:
    """Whether the configuration is run on this release, or recorded as not served."""
    return Version(release) >= Version(configuration.since)


def expected_refusal(configuration: Configuration, release: str) -> str | None:
    """The words with which this release has to refuse the configuration; None where it has to serve."""
    if configuration.latent:
        return latent_obstacle(release)
    return modelslim_obstacle(release) if configuration.modelslim else None


def judge(configuration: Configuration, result: dict[str, Any], answers: list[list[int]]) -> list[str]:
    """What is wrong with the tokens, in words; nothing when all of them are the oracle's."""
    problems = []
    for name in ("alone", "together", *configuration.force):
        asked = ALONE if name == "alone" else range(len(answers))
        expected = [answers[i][:MAX_TOKENS] for i in asked]
        # Where activations are quantised the oracle is sure of fewer tokens than are generated.
        wrong = [
            i for i, (found, want) in enumerate(zip(result[name], expected, strict=True)) if found[: len(want)] != want
        ]
        if wrong:
            problems.append(f"{name}: prompts {wrong} of {len(expected)} differ from transformers")
    return problems


def read_workers(configuration: Configuration, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What the workers' own reports say: patches by state, collectives per forward; and what is wrong with them."""
    reports = [json.loads(file.read_text()) for file in sorted(folder.glob("worker-*.json"))]
    ranks = configuration.tp * configuration.dp
    if len(reports) != ranks:
        return {}, [f"{len(reports)} of {ranks} workers reported"]
    states = {json.dumps(report["patches"], sort_keys=True) for report in reports}
    problems = [] if len(states) == 1 else ["workers differ in their patches"]
    patches: dict[str, str] = reports[0]["patches"]
    bad = sorted(name for name, state in patches.items() if state in ("idle", "armed", "refused", "failed"))
    if bad:
        problems.append(f"patches not applied: {', '.join(bad)}")
    needed = Counter(state for state in patches.values() if state != "not needed")
    summary: dict[str, Any] = {"patches": dict(needed), "forwards": sum(report["forwards"] for report in reports)}
    if configuration.graphs:
        replays = [report["replays"] for report in reports]
        summary["replays"] = sum(replays)
        if not all(replays):
            problems.append(f"replays of captured graphs per worker: {replays}")
    if configuration.whole_steps:
        whole = [report["whole_steps"] for report in reports]
        summary["whole_steps"] = sum(whole)
        if not all(whole):
            problems.append(f"decode steps replayed whole per worker: {whole}")
    if configuration.dp > 1:
        vectors, others = _count_collectives(reports)
        summary["collectives_per_forward"] = round(vectors / max(summary["forwards"], 1), 3)
        # vLLM's engine asks from time to time whether any rank has work left.
        if vectors != summary["forwards"] or others > vectors / 8:
            problems.append(
                f"{vectors} step vectors and {others} other all-reduces for {summary['forwards']} forwards, counted by "
                "the dispatcher"
            )
    return summary, problems


def _count_collectives(reports: list[dict[str, Any]]) -> tuple[int, int]:
    """All-reduces of the step vector, and other ones on the CPU, over all workers."""
    vectors = others = 0
    for report in reports:
        for call in report["all_reduces"]:
            transport, size = report["vector"]
            if (call["device"], call["bytes"]) == ("cpu" if transport == "cpu" else "npu", size):
                vectors += call["count"]
            elif call["device"] == "cpu":
                others += call["count"]
    return vectors, others


def read_traces(configuration: Configuration, trace: Path) -> tuple[dict[str, Any], list[str]]:
    """From the ranks' step traces: forwards per MoE method, and what is wrong with them."""
    files = sorted(trace.parent.glob(f"{trace.stem}.rank*{trace.suffix}"))
    ranks = [list(read_events(file)) for file in files]
    methods = Counter(event["args"]["method"] for events in ranks for event in events if event["name"] == "moe")
    missing = sorted(configuration.takes - set(methods))
    problems = [f"MoE methods not taken: {', '.join(missing)}"] if missing else []
    summary: dict[str, Any] = {"methods": dict(methods)}
    return summary, problems
