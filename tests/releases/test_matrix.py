# SPDX-License-Identifier: Apache-2.0
"""The matrix calls a run that proves too little what it is, and says why. No engine runs here."""

from __future__ import annotations

import concurrent.futures
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.matrix import run, runner, stacks, table
from scripts.matrix.configurations import (
    ALONE,
    CONFIGURATIONS,
    MAX_TOKENS,
    concerns,
    expected_refusal,
    judge,
    obstacle,
    read_traces,
    read_workers,
    without,
)
from scripts.matrix.releases import RELEASES, packages
from scripts.matrix.runner import last_error
from tests.support.environment import ROOT
from vllm_ascend_patch.releases import records
from vllm_ascend_patch.releases.pinned import PINNED, pinned

TWO = CONFIGURATIONS["dp2"]
ANSWERS = [[i] * MAX_TOKENS for i in range(8)]


def worker(**changes: Any) -> dict[str, Any]:
    """The report of a worker that did everything right: 40 forwards, 40 vectors, now and then a question of the engine."""
    calls = [
        {"ranks": 2, "device": "cpu", "bytes": 128, "count": 40},
        {"ranks": 2, "device": "cpu", "bytes": 8, "count": 3},
        {"ranks": 2, "device": "npu", "bytes": 128, "count": 80},
    ]
    return {"forwards": 40, "vector": ["cpu", 128], "all_reduces": calls, "patches": {"a": "applied"}, **changes}


def problems_of(folder: Path, *reports: dict[str, Any]) -> list[str]:
    for number, report in enumerate(reports):
        (folder / f"worker-{number}.json").write_text(json.dumps(report))
    return read_workers(TWO, folder)[1]


def test_workers_that_did_everything_right_pass(tmp_path: Path) -> None:
    assert problems_of(tmp_path, worker(), worker(patches={"a": "applied", "b": "not needed"})) == [
        "workers differ in their patches"
    ]
    assert problems_of(tmp_path, worker(), worker()) == []


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (worker(patches={"a": "armed"}), "patches not applied: a"),
        (worker(patches={"a": "refused"}), "patches not applied: a"),
        (worker(forwards=39), "80 step vectors and 6 other all-reduces for 78 forwards"),
        (worker(vector=["device", 128]), "160 step vectors"),
        (
            worker(all_reduces=[{"ranks": 2, "device": "cpu", "bytes": size, "count": 40} for size in (128, 32)]),
            "80 step vectors and 80 other all-reduces",
        ),
    ],
)
def test_a_worker_that_did_not_is_found_out(tmp_path: Path, report: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in problems_of(tmp_path, report, report))


def test_a_worker_that_says_nothing_is_missed(tmp_path: Path) -> None:
    assert problems_of(tmp_path, worker()) == ["1 of 2 workers reported"]


def test_a_wrong_token_names_its_prompt() -> None:
    alone = [ANSWERS[i] for i in ALONE]
    wrong = [*ANSWERS[:1], ANSWERS[0], *ANSWERS[2:]]
    assert judge(TWO, {"alone": alone, "together": wrong}, ANSWERS) == [
        "together: prompts [1] of 8 differ from transformers"
    ]
    assert judge(TWO, {"alone": alone[:1] * 2, "together": ANSWERS}, ANSWERS) == [
        "alone: prompts [1] of 2 differ from transformers"
    ]
    assert judge(TWO, {"alone": alone, "together": ANSWERS}, ANSWERS) == []


def test_a_method_that_was_never_taken_is_named(tmp_path: Path) -> None:
    event = {"name": "moe", "args": {"method": "mc2"}}
    (tmp_path / "trace.rank0.json").write_text("[\n" + json.dumps(event) + ",\n")
    assert read_traces(TWO, tmp_path / "trace.json") == ({"methods": {"mc2": 1}}, ["MoE methods not taken: allgather"])


def test_a_worker_that_replayed_no_graph_is_found_out(tmp_path: Path) -> None:
    for number, replays in enumerate((3, 0)):
        (tmp_path / f"worker-{number}.json").write_text(json.dumps(worker(replays=replays)))
    summary, problems = read_workers(CONFIGURATIONS["graphs"], tmp_path)
    assert summary["replays"] == 3
    assert problems == ["replays of captured graphs per worker: [3, 0]"]


def test_a_worker_that_replayed_pieces_alone_is_found_out(tmp_path: Path) -> None:
    for number, whole in enumerate((0, 5)):
        (tmp_path / f"worker-{number}.json").write_text(json.dumps(worker(replays=9, whole_steps=whole)))
    summary, problems = read_workers(CONFIGURATIONS["full"], tmp_path)
    assert (summary["replays"], summary["whole_steps"]) == (18, 5)
    assert problems == ["decode steps replayed whole per worker: [0, 5]"]


def test_graphs_are_run_where_nothing_is_in_the_way() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert obstacle(CONFIGURATIONS["graphs"], "0.33.0") is None
    assert obstacle(CONFIGURATIONS["graphs"], "0.10.0") == "vLLM 0.10.0 has no graph modes"
    assert obstacle(TWO, "0.10.0") is None
    assert obstacle(CONFIGURATIONS["v2"], "0.32.0") is None
    assert obstacle(CONFIGURATIONS["v2"], "0.31.0") == "it is served with vLLM >=0.32, and this is 0.31.0"
    assert without(CONFIGURATIONS["v2"]) == "refused"
    assert [concerns(CONFIGURATIONS["v2"], release) for release in ("0.30.0", "0.31.0")] == [False, True]
    assert obstacle(CONFIGURATIONS["full"], "0.32.0") is None
    assert obstacle(CONFIGURATIONS["full"], "0.10.0") == "vLLM 0.10.0 has no graph modes"
    assert obstacle(CONFIGURATIONS["full"], "0.15.0") is None
    why = "graphs of whole steps are captured with vLLM >=0.15, found 0.12.0"
    assert obstacle(CONFIGURATIONS["full"], "0.12.0") == why


def test_who_stops_the_matrix_ends_its_engines_and_no_other_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_stopping", False)
    started = tmp_path / "started"
    engine = [sys.executable, "-c", f"import time; open({str(started)!r}, 'w'); time.sleep(600)"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(runner._watched, engine, "", dict(os.environ), 60, tmp_path / "log")
        while not started.exists() and not run.done():
            time.sleep(0.01)
        runner.stop_all()
        with pytest.raises(RuntimeError, match="stopped"):
            run.result(30)
    with pytest.raises(RuntimeError, match="stopped"):
        runner._watched(engine, "", dict(os.environ), 60, tmp_path / "log")


def test_the_reason_of_a_failure_is_the_last_error_that_is_one() -> None:
    log = (
        "(EngineCore_DP0 pid=1) ERROR 11-24 10:00:00 [core.py:1] ValueError: 3 is too many\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
        "Exception ignored in: <function AsyncLLM.__del__>\nTypeError: 'NoneType' object is not callable\n"
    )
    assert last_error(log) == "ValueError: 3 is too many"


def test_a_release_that_does_not_serve_latent_attention_has_to_say_so() -> None:
    """vLLM's own lines about modules that are absent come before it, the runtime's about the exception after it."""
    words = expected_refusal(CONFIGURATIONS["mla"], "0.16.0")
    assert words == "vLLM 0.16.0 is older than 0.17.0, the first release that serves it"
    log = (
        "ERROR 11-29 [config.py:32] Failed to import Triton kernels. Error: No module named 'triton'\n"
        f"vllm_ascend_patch.npu.config_check.NotServable: m: latent attention (MLA) is not supported: {words}. Set\n"
        "[ERROR] 2026-11-29 (PID:3385, Device:-1, RankID:-1) ERR99999 UNKNOWN applicaiton exception\n"
    )
    assert words in last_error(log)
    assert expected_refusal(CONFIGURATIONS["mla"], "0.17.1") is None
    assert expected_refusal(CONFIGURATIONS["1"], "0.16.0") is None


def test_the_table_says_what_works_and_what_does_not() -> None:
    entry = {
        "packages": ["transformers==4.57.6"],
        "runs": {
            "1": {"configuration": "one device", "outcome": "works", "methods": {"allgather": 3}, "commit": "abc"},
            "dp2": {"configuration": "DP 2, EP", "outcome": "works", "methods": {"mc2": 3}, "commit": "abc"},
            "tp2dp2": {"configuration": "TP 2 x DP 2, EP", "outcome": "refused", "why": "no", "commit": "abc"},
        },
    }
    assert table.sentence(entry) == (
        "works: one device; DP 2, EP; MoE through AllGather, MC2. refused: TP 2 x DP 2, EP: no. "
        "With transformers==4.57.6"
    )


def test_what_a_release_was_seen_with_is_the_matrixs_stack_and_that_of_its_own_pins(tmp_path: Path) -> None:
    (tmp_path / "scripts" / "requirements").mkdir(parents=True)
    run = {"torch": "2.13.0", "torch_npu": "2.13.0"}
    entry = {"runs": {"1": run, "dp2": run}}
    assert [str(stack) for stack in table.stacks("0.9.0", entry, tmp_path)] == ["torch 2.13.0, torch_npu 2.13.0"]
    (tmp_path / "scripts" / "requirements" / "vllm-0.9.0.txt").write_text("# torch==2.7.1 torch_npu==2.7.1.post2\n")
    assert [str(stack) for stack in table.stacks("0.9.0", entry, tmp_path)] == [
        "torch 2.13.0, torch_npu 2.13.0",
        "torch 2.7.1, torch_npu 2.7.1.post2",
    ]


def test_every_run_that_is_recorded_says_its_stack() -> None:
    results = json.loads((ROOT / "docs" / "matrix.json").read_text())
    runs = [run for entry in results.values() for run in entry["runs"].values()]
    assert all(run["torch"] and run["torch_npu"] for run in runs)
    assert all(records.stacks(release) for release in results)
    for release, entry in results.items():
        for record in entry.get("pinned", {}).values():
            assert records.Stack(record["torch"], record["torch_npu"]) == pinned(release).stack


@pytest.mark.parametrize(
    ("release", "torch"),
    [
        *(("0.10.1.1", "2.7.1"), ("0.10.2", "2.8.0"), ("0.11.2", "2.9.0"), ("0.16.0", "2.9.1"), ("0.19.1", "2.10.0")),
        *(("0.26.0", "2.11.0"), ("0.32.0", "2.13.0"), ("0.33.0", "2.14.0"), ("0.34.0", "2.14.0")),
    ],
)
def test_the_torch_that_a_release_pins_is_known(release: str, torch: str) -> None:
    assert pinned(release).stack.torch == torch
    assert pinned(release).stack.torch_npu.startswith(torch)


def test_releases_that_pin_one_torch_are_run_in_one_environment() -> None:
    groups = stacks.groups(["0.33.0", "0.13.0", "0.12.0"])
    assert [stack.torch for stack in groups] == ["2.14.0", "2.9.0"]
    assert list(groups.values()) == [["0.33.0"], ["0.13.0", "0.12.0"]]
    assert sum(len(some) for some in stacks.groups(list(RELEASES)).values()) == len(RELEASES)
    assert len(stacks.groups(list(RELEASES))) == len(PINNED)


def test_runs_with_the_pinned_torch_stand_beside_the_others_and_are_said_apart(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    works = {"configuration": "one device", "outcome": "works", "methods": {"mc2": 1}}
    fails = {"configuration": "one device", "outcome": "fails", "why": "KeyError: 'x'"}
    run.keep(file, "0.20.2", "runs", {"1": {**works, "torch": "2.13.0", "torch_npu": "2.13.0"}})
    run.keep(file, "0.20.2", "pinned", {"1": {**fails, "torch": "2.11.0", "torch_npu": "2.11.0.post3"}})
    entry = json.loads(file.read_text())["0.20.2"]
    assert (entry["runs"]["1"]["outcome"], entry["pinned"]["1"]["outcome"]) == ("works", "fails")
    assert table.sentence(entry) == (
        "works: one device; MoE through MC2. With the torch that it pins: fails: one device: KeyError: 'x'"
    )
    assert [stack.torch for stack in table.stacks("0.20.2", entry, tmp_path)] == ["2.13.0", "2.11.0"]


def test_every_release_of_the_matrix_is_recorded() -> None:
    assert set(RELEASES) <= set(records.STORE.releases())
    assert packages("0.33.0") == ()
