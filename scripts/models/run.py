# SPDX-License-Identifier: Apache-2.0
"""The table of models: serve tiny models of MoE families on virtual NPUs, hold their tokens against transformers'.

    scripts/models.sh                      every family
    scripts/models.sh mixtral qwen3_moe    some families
    scripts/models.sh --list               which there are

Results are merged into the result file, from which docs/models.md and the doctor's words are made. Every run reads the
registries of the releases that are recorded, so that an architecture which nobody tried has a row that says so.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Queue
from typing import Any

from packaging.version import Version

from scripts.matrix import sources
from scripts.matrix.run import commit
from tests.support import processes
from tests.support.environment import ROOT, clean_environment
from tests.support.npus import npu_command
from vllm_ascend_patch.commands import documentation
from vllm_ascend_patch.patching.source import SourceUnavailable
from vllm_ascend_patch.releases import records, served_models

from . import registry
from .families import FAMILIES
from .untried import UNTRIED

_FIRST = "0.32.0"
"""The release that families are run on; architectures that only older ones have get no rows."""
_IMAGES = ("torchvision==0.28.0",)
"""What vLLM's classes of models that take images import; nothing else here needs it, so it is in no set of pins."""
_GOOD = ("right", "refused", "runs")


def main() -> int:
    options = _options()
    if options.list:
        print("\n".join(f"{name:28s} {', '.join(family.architectures)}" for name, family in FAMILIES.items()))
        return 0
    folder = Path(options.folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = options.families or list(FAMILIES)
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    known = results.get("families", {})
    results = {
        "registries": _registries(results.get("registries", {})),
        "untried": UNTRIED,
        "families": {name: known[name] for name in FAMILIES if name in known},
    }
    marks, bad, start = {"vllm": _FIRST, "commit": commit()}, 0, time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or workers would be left behind
    lines: Queue[dict[str, Any] | None] = Queue()
    workers = [_start(wanted[number :: options.workers], folder, lines) for number in range(options.workers)]
    try:
        running, number = len(workers), 0
        while running:
            found = lines.get()
            if found is None:
                running -= 1
                continue
            number, name = number + 1, found.pop("family")
            family = FAMILIES[name]
            about = {"architectures": list(family.architectures), "feature": family.feature, "dtype": family.dtype}
            results["families"][name] = about | found | marks
            bad += any(layout["outcome"] not in _GOOD for layout in found["layouts"].values())
            print(f"[{number}/{len(wanted)}] {name}: {_words(found['layouts'])}", flush=True)
            _keep(results, options.results)
    finally:
        for worker in workers:
            processes.kill_session(worker)
    print(f"{number} of {len(wanted)} families in {time.monotonic() - start:.0f} s; logs below {folder}", flush=True)
    return 1 if bad or number < len(wanted) else 0


def _registries(known: dict[str, list[str]]) -> dict[str, list[str]]:
    """The architectures with experts of every recorded release from the first on; as before where it cannot be read."""
    found = {}
    for release in records.STORE.releases():
        if Version(release) < Version(_FIRST):
            continue
        try:
            found[release] = sorted(registry.architectures(release))
        except SourceUnavailable as error:
            if release not in known:
                raise SystemExit(f"vLLM {release}: {error}") from None
            found[release] = known[release]
    return found


def _start(families: list[str], folder: Path, lines: Queue[dict[str, Any] | None]) -> subprocess.Popen[str]:
    """A warm process that serves ``families`` one after the other; each result goes to ``lines``, and None at its end."""
    command = npu_command([sys.executable, "-m", "scripts.models.worker"], devices=2, memory="4GiB")
    images = sources.overlay(_IMAGES, folder)
    environment = clean_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0")  # an engine shares its rank's process
    environment["PYTHONPATH"] += f":{images}"
    with (folder / f"worker-{threading.active_count()}.log").open("w") as log:
        worker = processes.start(command, environment, stdin=subprocess.PIPE, stderr=log)
    assert worker.stdin is not None
    with worker.stdin as job:
        json.dump({"families": families, "folder": str(folder)}, job)

    def read() -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            if processes.has_result(line):
                lines.put(json.loads(line.partition(" ")[2]))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return worker


def _keep(results: dict[str, Any], file: Path) -> None:
    """Write the result file; with the project's own, the tables that are made from it."""
    file.write_text(json.dumps(results, indent=1) + "\n")
    if file == served_models.RESULTS:
        for page in documentation.pages(ROOT):
            page.write_text(documentation.regenerate(page.read_text()))


def _words(layouts: dict[str, dict[str, Any]]) -> str:
    return "; ".join(f"{name} {found['outcome']}" + _why(found) for name, found in layouts.items())


def _why(found: dict[str, Any]) -> str:
    return f" ({found['why'].splitlines()[0][:160]})" if found.get("why") else ""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="models.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: every family")
    parser.add_argument("--list", action="store_true", help="print the families and their architectures")
    parser.add_argument("--workers", type=int, default=2, help="families that are served side by side (default 2)")
    parser.add_argument(
        "--results", type=Path, default=served_models.RESULTS, help="result file (default: the project's)"
    )
    parser.add_argument("--folder", default="~/.cache/vllm_ascend_patch/models", help="where checkpoints and logs go")
    options = parser.parse_args()
    unknown = sorted(set(options.families) - set(FAMILIES))
    if unknown:
        parser.error(f"not a family: {', '.join(unknown)}; --list shows them")
    options.workers = max(1, min(options.workers, len(options.families) or len(FAMILIES)))
    return options


if __name__ == "__main__":
    sys.exit(main())
