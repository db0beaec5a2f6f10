# SPDX-License-Identifier: Apache-2.0
"""Upstream's own tests, from the release's source archive, under the patch on (virtual) NPUs.

    scripts/upstream_tests.sh                       the short lane: minutes
    scripts/upstream_tests.sh kernels eplb          some lanes
    scripts/upstream_tests.sh --record short        keep what was found in the result file

Fails when a test that passed before does not, or when a test does not pass for a reason that is not in the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.matrix import sources, table
from scripts.matrix.run import commit
from tests.support.processes import result_of, under_virtual_npu
from vllm_ascend_patch.patching.source import SourceUnavailable

from . import archive, page, results, runner
from .lanes import LANES, RELEASE, Run

NOT_TO_BE_HAD = 3
"""Exit code where the index lacks the source archive or a package: nothing was run."""
_PACKAGES = ("tblib==3.1.0", "pytest-asyncio==1.4.0")
"""What upstream's tests import and no environment of ours has; the versions are those of vLLM's own requirements."""


def main() -> int:
    options = _options()
    cache = Path(options.folder).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        paths = [archive.unpack(RELEASE, cache), sources.overlay(_PACKAGES, cache) or cache]
    except (SourceUnavailable, RuntimeError, subprocess.SubprocessError) as error:
        print(f"upstream's tests were not run: {error}", flush=True)
        return NOT_TO_BE_HAD
    hub = _hub(cache)
    bad = 0
    for lane in options.lanes:
        for what in LANES[lane]:
            if options.only and what.name not in options.only:
                continue
            record = _timed(what, paths, hub)
            known = _known(options.results).get(lane, {}).get(what.name)
            complaints = _complaints(known, record)
            bad += bool(complaints)
            passed, failed, other = results.counts(record)
            print(f"{lane}: {what.name}: {passed} passed, {failed} failed, {other} not applicable", flush=True)
            print("".join(f"    {line}\n" for line in complaints), end="", flush=True)
            if options.record:
                _keep(options.results, lane, what.name, record)
    return 1 if bad else 0


def _timed(what: Run, paths: list[Path], hub: Path) -> dict[str, Any]:
    """Run a file of tests; its record, with what it ran on."""
    log = Path(tempfile.gettempdir()) / f"upstream-{what.name.replace(' ', '-')}.log"
    start = time.monotonic()
    environment = {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    record = results.summarise(what.file, runner.outcomes(what, paths, environment, log))
    seconds = round(time.monotonic() - start)
    if results.unexplained(record) or record["failed"]:
        print(f"    log: {log}", flush=True)
    else:
        log.unlink(missing_ok=True)
    return {"file": what.file, "seconds": seconds, "commit": commit(), **table.installed_stack()._asdict(), **record}


def _complaints(known: dict[str, Any] | None, record: dict[str, Any]) -> list[str]:
    found = [f"passed before: {words}" for words in (results.worse(known, record) if known else [])]
    for function, cases in results.unexplained(record).items():
        found.append(f"no reason in the table: {function} {' '.join(cases[:3])} ({len(cases)})")
    return found


def _hub(cache: Path) -> Path:
    """A home of Hugging Face's libraries with tiny models under the names that the tests ask for."""
    home = cache / "huggingface"
    if not (home / "complete").exists():
        result_of(under_virtual_npu("-m", "tests.support.text_models", str(home / "hub"), seconds=300))
        (home / "complete").touch()
    return home


def _known(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _keep(file: Path, lane: str, name: str, record: dict[str, Any]) -> None:
    """Merge one run into the result file; lanes and runs stand in the order of their table."""
    known = _known(file)
    known.setdefault(lane, {})[name] = record
    ordered = {
        key: {what.name: known[key][what.name] for what in LANES[key] if what.name in known[key]}
        for key in LANES
        if key in known
    }
    file.write_text(json.dumps(ordered, indent=1) + "\n")
    if file == page.RESULTS:
        page.write(ordered)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="upstream_tests.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"of {', '.join(LANES)}; default: short")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this file of the lanes; may be repeated")
    parser.add_argument("--record", action="store_true", help="write what was found into the result file")
    parser.add_argument(
        "--results", type=Path, default=page.RESULTS, help="result file (default docs/upstream_tests.json)"
    )
    parser.add_argument(
        "--folder", default="~/.cache/vllm_ascend_patch/upstream_tests", help="where tests and models are unpacked"
    )
    options = parser.parse_args()
    options.lanes = options.lanes or ["short"]
    unknown = sorted(set(options.lanes) - set(LANES))
    if unknown:
        parser.error(f"there is no lane {', '.join(unknown)}; there are {', '.join(LANES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
