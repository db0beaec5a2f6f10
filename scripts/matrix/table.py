# SPDX-License-Identifier: Apache-2.0
"""Turns the matrix's result file into the README's compatibility table and into the doctor's words. Runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packaging.version import Version

from .configurations import CONFIGURATIONS

_BEGIN, _END = "<!-- matrix table: made by scripts/matrix.sh -->", "<!-- end of matrix table -->"
_STANDING = "vllm_ascend_patch/seams/standing.json"


def order(item: tuple[str, Any]) -> Version:
    """Sort key of an entry of the result file."""
    return Version(item[0])


def markdown(results: dict[str, Any]) -> str:
    """The table, newest release first."""
    heads = [configuration.name for configuration in CONFIGURATIONS.values()]
    lines = [f"| vLLM | {' | '.join(heads)} | MoE methods taken | needs |", f"|{' --- |' * (len(heads) + 3)}"]
    for release, entry in sorted(results.items(), key=order, reverse=True):
        cells = [_cell(entry["runs"].get(key)) for key in CONFIGURATIONS]
        methods = sorted({m for record in entry["runs"].values() for m in record.get("methods", ())})
        needs = ", ".join(f"`{pin}`" for pin in entry["packages"] if pin.startswith("transformers"))
        lines.append(f"| {release} | {' | '.join(cells)} | {', '.join(methods)} | {needs} |")
    return "\n".join(lines)


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not run"
    if record["outcome"] == "works":
        return "works"
    why = record.get("why", "").replace("|", "\\|")
    return f"{record['outcome']}: {why[:160]}"


def standing(results: dict[str, Any]) -> dict[str, str]:
    """One sentence per release for ``python -m vllm_ascend_patch doctor``."""
    sentences = {}
    for release, entry in sorted(results.items(), key=order):
        parts = [f"{record['configuration']}: {record['outcome']}" for record in entry["runs"].values()]
        sentences[release] = "matrix run with torch 2.13: " + "; ".join(parts)
    return sentences


def write(results: dict[str, Any], root: Path) -> None:
    """Write both; the README is left alone when it has no place for the table."""
    (root / _STANDING).write_text(json.dumps(standing(results), indent=1) + "\n")
    readme = root / "README.md"
    text = readme.read_text()
    if _BEGIN in text and _END in text:
        head, tail = text.split(_BEGIN)[0], text.split(_END)[1]
        readme.write_text(f"{head}{_BEGIN}\n{markdown(results)}\n{_END}{tail}")
