# SPDX-License-Identifier: Apache-2.0
"""Upstream's tests as a judge: what stops passing is named, nothing is left unexplained, the page says what is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts.upstream_tests import changes, page, results, runner
from scripts.upstream_tests.lanes import LANES, Run
from scripts.upstream_tests.reasons import UNEXPLAINED
from scripts.upstream_tests.run import NOT_TO_BE_HAD
from scripts.upstream_tests.runner import Outcome
from tests.support.environment import ROOT, clean_environment
from tests.support.processes import run

FILE = "a/test_a.py"
KEPT = results.summarise(FILE, [*(Outcome(f"test_a[{n}]", "passed") for n in range(3)), Outcome("test_b", "passed")])


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ([("test_a[0]", "passed"), ("test_a[1]", "passed"), ("test_a[2]", "passed"), ("test_b", "passed")], []),
        (
            [("test_a[0]", "passed"), ("test_a[1]", "failed"), ("test_a[2]", "passed"), ("test_b", "passed")],
            ["test_a[1]"],
        ),
        (
            [("test_a[0]", "passed"), ("test_a[1]", "passed"), ("test_a[2]", "passed"), ("test_b", "skipped")],
            ["test_b"],
        ),
        (
            [("test_a[0]", "failed"), ("test_a[1]", "failed"), ("test_a[2]", "failed"), ("test_b", "passed")],
            ["test_a, all of 3"],
        ),
        ([("test_a[0]", "passed"), ("test_b", "passed")], ["test_a: 1 pass, 3 did"]),
        ([("collection", "failed")], ["test_a: 0 pass, 3 did", "test_b: 0 pass, 1 did"]),
    ],
)
def test_what_stops_passing_is_named(now: list[tuple[str, str]], found: list[str]) -> None:
    record = results.summarise(FILE, [Outcome(*outcome) for outcome in now])
    assert results.worse(KEPT, record) == found


def test_a_test_without_a_reason_is_unexplained() -> None:
    outcomes = [Outcome("test_a[0]", "failed", "AssertionError"), Outcome("test_a[1]", "skipped", "Skipped: a whim")]
    record = results.summarise(FILE, outcomes)
    assert results.unexplained(record) == {"test_a": ["[1]", "[0]"]}
    assert results.counts(record) == (0, 1, 1)


def test_what_fails_is_not_explained_by_the_skip_that_its_source_shows() -> None:
    words = "NIXL is not available"
    outcomes = [
        Outcome("test_a[0]", "failed", f'pytest.skip("{words}")\nAssertionError'),
        Outcome("test_b", "skipped", words),
    ]
    record = results.summarise(FILE, outcomes)
    assert results.unexplained(record) == {"test_a": ["[0]"]}
    assert record["not applicable"] == {"NIXL is not installed": {"test_b": [""]}}


def test_a_change_without_a_place_is_an_error(tmp_path: Path) -> None:
    for name in {file for change in changes.CHANGES for file in change.files}:
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("device = 'cpu'\n")
    with pytest.raises(ValueError, match="any more"):
        changes.apply(tmp_path)


def test_what_is_kept_is_explained_and_is_what_the_page_says() -> None:
    kept = json.loads(page.RESULTS.read_text())
    for lane, runs in kept.items():
        for name, record in runs.items():
            assert record["file"] == {what.name: what.file for what in LANES[lane]}[name]
            assert not results.unexplained(record), f"{lane}, {name}: {UNEXPLAINED}"
    assert page.PAGE.read_text() == page.text(kept), "scripts/upstream_tests.sh --record writes the page"


@pytest.mark.slow
@pytest.mark.serve
@pytest.mark.timeout(200)
def test_a_server_of_a_file_that_takes_too_long_ends_with_it(tmp_path: Path) -> None:
    """Upstream starts servers in sessions of their own, which outlive the one that is killed."""
    (tmp_path / "pyproject.toml").touch()
    file = tmp_path / "tests" / FILE
    file.parent.mkdir(parents=True)
    file.write_text(
        "import pathlib, subprocess, time\n"
        "def test_a():\n"
        "    server = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(server.pid))\n"
        "    time.sleep(600)\n"
    )
    what = Run("slow", FILE, seconds=60)
    (outcome,) = runner.outcomes(what, [tmp_path], {}, tmp_path / "log")
    assert (outcome.test, outcome.state) == ("test_a", "failed")
    assert "not ended within 60 s" in outcome.words
    server = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE


def _mutated(folder: Path, *changed: tuple[str, str, str]) -> Path:
    """A copy of the package in which files have something new for something old."""
    shutil.copytree(ROOT / "vllm_ascend_patch", folder / "vllm_ascend_patch")
    for file, old, new in changed:
        path = folder / "vllm_ascend_patch" / file
        source = path.read_text()
        assert source.count(old) == 1, f"{file} has no single {old!r}"
        path.write_text(source.replace(old, new))
    return folder


def _run(tree: Path, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """The script with the package of ``tree``; skips the test where the index lacks the source archive."""
    command = [sys.executable, "-m", "scripts.upstream_tests.run", *arguments]
    environment = clean_environment(PYTHONPATH=f"{tree}:{ROOT}", PYTHONSAFEPATH="1")
    done = run(command, seconds=seconds, environment=environment)
    if done.returncode == NOT_TO_BE_HAD:
        pytest.skip(done.stdout)
    return done


@pytest.mark.slow
@pytest.mark.serve
@pytest.mark.timeout(700)
def test_the_run_fails_without_the_routers_clamp(tmp_path: Path) -> None:
    clamp = "broken = ~logits.amax(dim=-1, keepdim=True).isfinite()"
    without = "broken = torch.zeros_like(logits[:, :1], dtype=torch.bool)"
    tree = _mutated(tmp_path, ("core/moe/router_ops.py", clamp, without))
    done = _run(tree, "short", "--only", "fused top-k", seconds=600)
    assert done.returncode == 1, done.stdout
    assert "passed before: test_fused_topk_nan_inf_clamp[" in done.stdout


@pytest.mark.slow
@pytest.mark.serve
@pytest.mark.timeout(1100)
def test_the_run_fails_when_idle_ranks_do_not_take_part(tmp_path: Path) -> None:
    tree = _mutated(
        tmp_path,
        ("seams/step/dummy.py", "        return original(worker, *args, **kwargs)\n", "        return None\n"),
        ("envs.py", 'default="60",', 'default="10",'),  # the rank that waits for them gives up sooner
    )
    done = _run(tree, "external", "--only", "external, api-1-ep-enabled", seconds=1000)
    assert done.returncode == 1, done.stdout
    assert "passed before: test_external_lb_single_completion" in done.stdout
    assert "passed before: test_external_lb_server_info" not in done.stdout, "what needs no step passes"
