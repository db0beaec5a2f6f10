# SPDX-License-Identifier: Apache-2.0
"""What was run of each architecture with experts, from ``served_models.json``, which ``scripts/models.sh`` writes.

Reads and puts into words; whether a given configuration is served is ``core/model_support.py``'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "served_models.json"
UNTRIED = "not tried"
_WORDS = {
    "right": "right",
    "runs": "runs, tokens not checked",
    "refused": "refused",
    "not made": UNTRIED,
    "unclear": "tokens not clear enough to judge",
    "not judged": "tokens not judged",
    "wrong": "WRONG",
    "crash": "CRASH",
    "hang": "HANG",
}
_WHY_UNTRIED = "nothing was run of it"


@dataclass(frozen=True)
class Row:
    """One tiny model of an architecture, or none.

    Attributes:
        architecture: as configurations name it.
        releases: recorded releases of vLLM that have a class for it; empty where vLLM's Transformers backend serves it.
        feature: what of the model is exercised.
        standing: what came of it, with the layouts that it holds for.
        why: the message of a refusal, or what kept it from being tried.
        commit: the tree that ran.
    """

    architecture: str
    releases: tuple[str, ...]
    feature: str
    standing: str
    why: str
    commit: str


def rows() -> Iterator[Row]:
    """Every architecture, in alphabetical order, with each of its tiny models; those without say so."""
    found = _results()
    registries: Mapping[str, list[str]] = found["registries"]
    of_architecture: dict[str, list[Mapping[str, Any]]] = {}
    for family in found["families"].values():
        for architecture in family["architectures"]:
            of_architecture.setdefault(architecture, []).append(family)
    names = {name for known in registries.values() for name in known} | set(of_architecture)
    for name in sorted(names, key=lambda name: (name.lower(), name)):
        releases = tuple(release for release, known in registries.items() if name in known)
        if name not in of_architecture:
            yield Row(name, releases, "", UNTRIED, found["untried"].get(name, _WHY_UNTRIED), "")
        for family in of_architecture.get(name, ()):
            standing, why = _standing(family)
            yield Row(name, releases, family["feature"], standing, why, family["commit"])


def words(architecture: str) -> str:
    """What was run of an architecture, for one line of the doctor."""
    known = [row for row in rows() if row.architecture == architecture]
    if not known:
        return UNTRIED
    said = [f"{row.standing} ({row.feature})" if row.feature else f"{row.standing}: {row.why}" for row in known]
    return "; ".join(dict.fromkeys(said))


def _standing(family: Mapping[str, Any]) -> tuple[str, str]:
    layouts: Mapping[str, Mapping[str, Any]] = family["layouts"]
    by_outcome: dict[str, list[str]] = {}
    for layout, found in layouts.items():
        by_outcome.setdefault(_WORDS[found["outcome"]], []).append(layout)
    parts = [
        outcome if outcome in ("refused", UNTRIED) else f"{outcome}: {', '.join(names)}"
        for outcome, names in by_outcome.items()
    ]
    dtype = f"; {family['dtype']}" if "right" in by_outcome else ""
    return "; ".join(parts) + dtype, " ".join(
        dict.fromkeys(str(found["why"]) for found in layouts.values() if "why" in found)
    )


def _results() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8")))
