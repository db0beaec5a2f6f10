# SPDX-License-Identifier: Apache-2.0
"""Turns the matrix's result file into the doctor's words and, with them, the generated tables of releases. Runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packaging.version import Version

from vllm_ascend_patch.commands import documentation

STANDING = "vllm_ascend_patch/releases/standing.json"
_METHODS = {"allgather": "AllGather", "mc2": "MC2", "alltoall": "AllToAll"}


def order(item: tuple[str, Any]) -> Version:
    """Sort key of an entry of the result file."""
    return Version(item[0])


def sentence(entry: dict[str, Any]) -> str:
    """What was run on one release and what came of it."""
    runs = entry["runs"].values()
    parts = []
    works = [record["configuration"] for record in runs if record["outcome"] == "works"]
    if works:
        taken = {method for record in runs if record["outcome"] == "works" for method in record.get("methods", ())}
        methods = ", ".join(words for name, words in _METHODS.items() if name in taken)
        parts.append(f"works: {'; '.join(works)}" + (f"; MoE through {methods}" if methods else ""))
    parts += [
        f"{record['outcome']}: {record['configuration']}: {record.get('why', '')[:160]}"
        for record in runs
        if record["outcome"] != "works"
    ]
    pins = [pin for pin in entry["packages"] if pin.startswith("transformers")]
    return ". ".join([*parts, *(f"With {pin}" for pin in pins)])


def write(results: dict[str, Any], root: Path) -> None:
    """Write the doctor's words, and with them the generated tables of every page that has some."""
    sentences = {release: sentence(entry) for release, entry in sorted(results.items(), key=order)}
    (root / STANDING).write_text(json.dumps(sentences, indent=1) + "\n")
    for page in documentation.pages(root):
        page.write_text(documentation.regenerate(page.read_text()))
