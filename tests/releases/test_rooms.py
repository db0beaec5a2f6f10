# SPDX-License-Identifier: Apache-2.0
"""A vLLM release can only touch ``seams/`` and ``npu/``: nobody else imports vLLM at start or knows its versions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "vllm_ascend_patch"
SOURCES = sorted(ROOT.rglob("*.py"))
# A number that says which vLLM: beside its name, or as a bound in a specifier.
VERSION = re.compile(r"vllm[-_ =<>~]*0\.\d{1,2}\b|[<>~=]= ?0\.[123]\d(?!\d)|[<>] ?0\.[123]\d\b", re.IGNORECASE)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imported(path: Path) -> list[str]:
    """Absolute names of everything that a file imports, inside functions too."""
    names = []
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            names.append(".".join([*base, *([node.module] if node.module else [])]))
    return names


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) == "core"], ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_neither_vllm_nor_what_depends_on_its_release(path: Path) -> None:
    forbidden = ("vllm", "vllm_ascend_patch.seams", "vllm_ascend_patch.npu")
    assert [n for n in imported(path) if any(n == f or n.startswith(f"{f}.") for f in forbidden)] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) == "patching"], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_patch_engine_knows_no_vllm_no_npu_and_no_moe(path: Path) -> None:
    forbidden = {"vllm", "torch", "torch_npu"}
    assert [n for n in imported(path) if n.split(".")[0] in forbidden] == []


def test_no_file_outside_seams_and_npu_names_a_vllm_version() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        if room(path) not in ("releases", "seams", "npu")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if VERSION.search(line)
    ]
    assert found == []


def test_adapters_are_chosen_by_what_is_there_and_not_by_comparing_versions() -> None:
    suspects = re.compile(r"vllm\.__version__|vllm\.version|version_tuple|packaging\.version")
    allowed = {"guard.py", "records.py"}  # which release is installed, and which record belongs to it
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        if room(path) in ("releases", "seams", "npu") and path.name not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if suspects.search(line)
    ]
    assert found == []


def test_the_version_pattern_sees_what_it_is_meant_to_see() -> None:
    for text in ("vLLM 0.32.0", "vllm==0.10.1.1", 'releases=">=0.12"', "<0.31"):
        assert VERSION.search(text), text
    for text in ("start + 0.25", "alpha=0.12", "transformers 4.57"):
        assert not VERSION.search(text), text
