# SPDX-License-Identifier: Apache-2.0
"""Turns the matrix's result file into the doctor's words and, with them, the generated tables of releases. Runs nothing."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from vllm_ascend_patch.commands import documentation
from vllm_ascend_patch.releases.records import Stack

STANDING = "vllm_ascend_patch/releases/standing.json"
_METHODS = {"allgather": "AllGather", "mc2": "MC2", "alltoall": "AllToAll"}


def order(item: tuple[str, Any]) -> Version:
    """Sort key of an entry of the result file."""
    return Version(item[0])


def installed_stack() -> Stack:
    """What this process's environment runs releases with."""
    return Stack(_public(version("torch")), _public(version("torch_npu")))


def _public(text: str) -> str:
    return text.partition("+")[0]


def stacks(release: str, entry: dict[str, Any], root: Path) -> list[Stack]:
    """What the release was seen with: in the matrix, and in CI where it has a line of tests with pins of its own."""
    records = [*entry["runs"].values(), *entry.get("pinned", {}).values()]
    found = [Stack(record["torch"], record["torch_npu"]) for record in records if "torch" in record]
    lock = root / "scripts" / "requirements" / f"vllm-{release}.txt"
    if lock.is_file():
        head = re.match(r"# torch==(\S+) torch_npu==(\S+)", lock.read_text(encoding="utf-8"))
        if head is None:
            raise ValueError(f"{lock} does not begin with '# torch==X torch_npu==Y'")
        found.append(Stack(*head.groups()))
    return list(dict.fromkeys(found))


def sentence(entry: dict[str, Any]) -> str:
    """What was run on one release and what came of it, with the default line's torch and with the one that it pins."""
    parts = _outcomes(entry["runs"])
    if entry.get("pinned"):
        parts.append(f"With the torch that it pins: {'. '.join(_outcomes(entry['pinned']))}")
    pins = [pin for pin in entry["packages"] if pin.startswith("transformers")]
    return ". ".join([*parts, *(f"With {pin}" for pin in pins)])


def _outcomes(records: dict[str, Any]) -> list[str]:
    runs = records.values()
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
    return parts


def write(results: dict[str, Any], root: Path) -> None:
    """Write the doctor's words, and with them the generated tables of every page that has some."""
    standing = {
        release: {
            "words": sentence(entry),
            "seen_with": [stack._asdict() for stack in stacks(release, entry, root)],
        }
        for release, entry in sorted(results.items(), key=order)
    }
    (root / STANDING).write_text(json.dumps(standing, indent=1) + "\n")
    for page in documentation.pages(root):
        page.write_text(documentation.regenerate(page.read_text()))
