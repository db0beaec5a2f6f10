# SPDX-License-Identifier: Apache-2.0
"""The matrix: run vLLM releases on (virtual) NPUs, two at a time, keep a result file, print a line per release.

    scripts/matrix.sh                      every release, every configuration
    scripts/matrix.sh 0.33.0 0.12.0        some releases
    scripts/matrix.sh --only 1 0.20.2      one configuration: 1, mla, dp2, tp2dp2, w8a8, modelslim, graphs, full or v2
    scripts/matrix.sh --pinned 0.20.2      with the torch that the release pins, in an environment made for it

Results are merged into the result file; the tables of releases and the doctor's words are made from it (``table.py``).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.environment import ROOT
from vllm_ascend_patch.patching.source import SourceUnavailable

from . import releases, runner, sources, stacks, table
from .cases import cases as make_cases
from .configurations import CONFIGURATIONS, concerns, expected_refusal, obstacle, without

RESULTS = ROOT / "docs" / "matrix.json"
_INTENDED = ("works", "refused", "eager", "pieces")
_AT_A_TIME = 2
"""Releases that run side by side: an engine's start is mostly one process that imports, compiles or waits."""

_shared = threading.Lock()  # for what releases have in common: models and packages, made once


def main() -> int:
    options = _options()
    cache = Path(options.folder).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = options.releases or list(reversed(releases.RELEASES))
    if not options.pinned:
        return _run_here(wanted, options, cache)
    codes = []
    for stack, some in stacks.groups(wanted).items():
        if stack == table.installed_stack():
            codes.append(_run_here(some, options, cache))
            continue
        print(f"{', '.join(some)}: {stack}", flush=True)
        try:
            command = [str(stacks.make(stack, cache)), "-m", "scripts.matrix.run", *_passed_on(options), *some]
        except RuntimeError as error:
            print(f"not run: {error}", flush=True)
            codes.append(1)
            continue
        codes.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
    return max(codes)


def _passed_on(options: argparse.Namespace) -> list[str]:
    """The options for this command in another environment."""
    words = [
        "--pinned",
        "--seconds",
        str(options.seconds),
        "--results",
        str(options.results),
        "--folder",
        options.folder,
    ]
    return [*words, *(["--keep"] if options.keep else []), *(word for key in options.only for word in ("--only", key))]


def _run_here(wanted: list[str], options: argparse.Namespace, cache: Path) -> int:
    """Run the releases with the torch of this environment. The exit code: 0 when each outcome is an intended one."""
    tree, bad = commit(), 0
    column = "pinned" if options.pinned else "runs"
    pool = concurrent.futures.ThreadPoolExecutor(_AT_A_TIME)
    runs = {pool.submit(_timed, release, options, cache): release for release in wanted}
    try:
        for number, run in enumerate(concurrent.futures.as_completed(runs), 1):
            head = f"[{number}/{len(wanted)}] vLLM {runs[run]}"
            try:
                records, seconds = run.result()
            except (SourceUnavailable, RuntimeError, subprocess.SubprocessError) as error:
                bad += 1
                print(f"{head}: not run: {error}", flush=True)
                continue
            marks = {"commit": tree, **table.installed_stack()._asdict()}
            keep(options.results, runs[run], column, {key: {**record, **marks} for key, record in records.items()})
            bad += any(record["outcome"] not in _INTENDED for record in records.values())
            print(f"{head}: {', '.join(map(_words, records.values()))} ({seconds:.0f} s)", flush=True)
    except KeyboardInterrupt:
        print("stopped; the releases above are recorded", flush=True)
        return 130
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.stop_all()
    return 1 if bad else 0


def _timed(release: str, options: argparse.Namespace, cache: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """``run_release`` and the seconds that it took; its sources are gone afterwards."""
    start = time.monotonic()
    try:
        return run_release(release, options.only, cache, options.seconds), time.monotonic() - start
    finally:
        if not options.keep:
            sources.remove(release, cache)


def keep(file: Path, release: str, column: str, records: dict[str, dict[str, Any]]) -> None:
    """Merge the records of one release into a column of the result file (``runs``: the default line's torch, ``pinned``: the
    release's own); with the project's own file, write what is made from it."""
    results = json.loads(file.read_text()) if file.is_file() else {}
    known = results.setdefault(release, {"runs": {}})
    known["packages"] = list(releases.packages(release))
    runs = known.get(column, {}) | records
    known[column] = {key: runs[key] for key in CONFIGURATIONS if key in runs}
    results = dict(sorted(results.items(), key=table.order))
    file.write_text(json.dumps(results, indent=1) + "\n")
    if file == RESULTS:
        table.write(results, ROOT)


def run_release(release: str, only: list[str], cache: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Every configuration of one release; the record of each by the configuration's key."""
    unpacked = sources.unpack(release, cache)
    with _shared:
        packages = sources.overlay(releases.packages(release), cache)
    paths = [unpacked, packages] if packages else [unpacked]
    arguments = releases.ARGUMENTS.get(release, {})
    records = {}
    for key in only:
        configuration = CONFIGURATIONS[key]
        if not concerns(configuration, release):
            continue
        if why := obstacle(configuration, release):
            records[key] = {"configuration": configuration.name, "outcome": without(configuration), "why": why}
            continue
        with _shared:
            model, cases = make_cases(configuration.family, cache / "models")
        log = Path(tempfile.gettempdir()) / f"matrix-{release}-{key}.log"
        refusal = expected_refusal(configuration, release)
        records[key] = runner.run(configuration, paths, model, cases, arguments, seconds, log, refusal)
        if records[key]["outcome"] in _INTENDED:
            log.unlink()
        else:
            print(f"    {release}, {configuration.name}: {records[key].get('why')} (log: {log})", flush=True)
    return records


def commit() -> str:
    """The tree that runs, with a plus sign where more than the results was changed since."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    tracked = [
        *git,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!docs",
        ":!README.md",
        f":!{table.STANDING}",
        ":!vllm_ascend_patch/releases/served_models.json",
    ]
    changed = subprocess.run([*tracked], capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")


def _words(record: dict[str, Any]) -> str:
    return f"{record['configuration']} {record['outcome']}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="matrix.sh", description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="default: every release, newest first")
    parser.add_argument(
        "--only", action="append", choices=list(CONFIGURATIONS), help="run this configuration; may be repeated"
    )
    parser.add_argument("--seconds", type=float, default=420, help="time limit of one engine (default 420)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="result file (default docs/matrix.json)")
    parser.add_argument(
        "--pinned", action="store_true", help="run each release with the torch and torch_npu of its own deployments"
    )
    parser.add_argument("--keep", action="store_true", help="keep the unpacked sources")
    parser.add_argument(
        "--folder", default="~/.cache/vllm_ascend_patch/matrix", help="where sources and models are unpacked"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.releases) - set(releases.RELEASES))
    if unknown:
        parser.error(f"not a release of the matrix: {', '.join(unknown)}; known: {', '.join(releases.RELEASES)}")
    options.only = options.only or list(CONFIGURATIONS)
    return options


if __name__ == "__main__":
    sys.exit(main())
