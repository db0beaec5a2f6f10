# SPDX-License-Identifier: Apache-2.0
"""vLLM's records: where they are, what goes into them, and what a patch's declaration means for a release of vLLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import SpecifierSet

from vllm_ascend_patch.patching.declaration import Patch
from vllm_ascend_patch.patching.record import RecordStore, merge_wanted

from . import declarations
from .watched import WATCHED

__all__ = ["PACKAGE", "STORE", "UNTRIED", "WATCHED", "Stack", "covers", "span", "stacks", "standing", "wanted"]

PACKAGE = "vllm"
STORE = RecordStore(Path(__file__).parent / "upstream")
_STANDING = Path(__file__).parent / "standing.json"

UNTRIED = "recorded; nothing has been run on it"
"""The standing of a release that has a record and no run."""


def covers(patch: Patch, release: str) -> bool:
    """Whether a patch is declared for a release."""
    return SpecifierSet(patch.releases).contains(release, prereleases=True)


class Stack(NamedTuple):
    """The versions that a release was run with, without local parts (``2.13.0+cpu`` is 2.13.0)."""

    torch: str
    torch_npu: str

    def __str__(self) -> str:
        return f"torch {self.torch}, torch_npu {self.torch_npu}"


def standing(release: str) -> str:
    """What has been run on a release, in words, from ``standing.json``, which the tests that ran wrote."""
    return str(_known(release).get("words", UNTRIED))


def stacks(release: str) -> list[Stack]:
    """What the release was run with: the matrix's stack first, then the one that it pins, then that of its line of tests.
    Empty without a run."""
    return [Stack(**stack) for stack in _known(release).get("seen_with", ())]


def _known(release: str) -> dict[str, Any]:
    known = json.loads(_STANDING.read_text(encoding="utf-8")) if _STANDING.is_file() else {}
    return dict(known.get(release, {}))


def wanted(release: str, patches: Sequence[Patch] | None = None) -> dict[str, frozenset[str]]:
    """The targets to record for a release, with the calls that the patches declared for it rely on."""
    declared = declarations.patches() if patches is None else patches
    return merge_wanted(
        [(target, ()) for target in WATCHED]
        + [(patch.target, patch.calls) for patch in declared if covers(patch, release)]
    )


def span(patch: Patch) -> str:
    """The recorded releases that a patch is declared for, in words."""
    known = [release for release in STORE.releases() if covers(patch, release)]
    if len(known) < 3:
        return " and ".join(known) or "none"
    return f"{known[0]} to {known[-1]} ({len(known)} recorded releases)"
