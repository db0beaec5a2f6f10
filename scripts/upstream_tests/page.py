# SPDX-License-Identifier: Apache-2.0
"""Writes ``docs/upstream-tests.md`` from the tables beside it and the result file. Runs no test.

Script, for when a table was changed: python -m scripts.upstream_tests.page
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.support.environment import ROOT

from . import results
from .changes import CHANGES
from .lanes import LANES, NO_LANE, RELEASE

RESULTS = ROOT / "docs" / "upstream_tests.json"
PAGE = RESULTS.with_name("upstream-tests.md")

_HEAD = f"""# Upstream's own tests

vLLM {RELEASE}'s tests of MoE routing, expert load balancing, sampling with drafts and data-parallel servers,
from its source archive, under this patch set on virtual NPUs. `scripts/upstream_tests.sh [LANE …]` runs them (so does
`nox -s upstream`; without a lane, `short`). It fails when a test that passed before does not, or when one does not pass for
a reason that `scripts/upstream_tests/reasons.py` does not have. `--record` writes `docs/upstream_tests.json` and, from it
and the tables in that folder, this page.

A lane or file that was *not run* is just that: nothing is claimed of it.

Models have upstream's names and are tiny: a byte per token, one clear successor for each. Packages that only upstream's
tests import go into a folder of their own. The virtual NPUs have 1 GiB each. Servers keep idle connections for 300 s instead
of 5: on few cores one is closed at the moment at which a client, which asks once, takes it up again.
"""


def text(kept: dict[str, Any]) -> str:
    """The page for the content of the result file."""
    columns = ("Lane", "Run", "File", "Passed", "Failed", "Not applicable", "Commit")
    parts = [_HEAD, "## What passes\n", _table(columns, _rows(kept))]
    parts += ["\n## What is in no lane\n", _table(("File", "Because"), NO_LANE.items())]
    parts += ["\n## Why a test does not pass\n", _table(("Run", "Tests", "", "Reason"), _reasons(kept))]
    changed = ((f"`{_line(c.old)}`", f"`{_line(c.new)}`", ", ".join(c.files) or "all files", c.why) for c in CHANGES)
    parts += ["\n## What is changed in the tests\n", _table(("This", "becomes", "in", "because"), changed)]
    return "\n".join(parts) + "\n"


def write(kept: dict[str, Any]) -> None:
    PAGE.write_text(text(kept), encoding="utf-8")


def _rows(kept: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for lane, runs in LANES.items():
        for what in runs:
            record = kept.get(lane, {}).get(what.name)
            if record is None:
                yield lane, what.name, what.file, "not run", "", "", ""
            else:
                passed, failed, other = results.counts(record)
                yield lane, what.name, what.file, str(passed), str(failed), str(other), record["commit"]


def _reasons(kept: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for runs in kept.values():
        for run, record in runs.items():
            for kind in ("failed", "not applicable"):
                for words, functions in record[kind].items():
                    tests = ", ".join(f"`{name}` ({results.number(cases)})" for name, cases in functions.items())
                    yield run, tests, kind, words


def _line(code: str) -> str:
    return code if "\n" not in code else code.partition("\n")[0] + " …"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(columns), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))
