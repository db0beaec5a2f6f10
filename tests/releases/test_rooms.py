# SPDX-License-Identifier: Apache-2.0
"""A vLLM release can only touch ``releases/``, ``seams/`` and ``npu/``: nobody else knows its versions; and the state of
the seams has one owner. Who may import whom is held by the contracts of import-linter in ``setup.cfg``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.environment import ROOT

PACKAGE = ROOT / "vllm_ascend_patch"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# A number that says which vLLM: beside its name, or as a bound in a specifier.
VERSION = re.compile(r"vllm[-_ =<>~]*0\.\d{1,2}\b|[<>~=]= ?0\.[123]\d(?!\d)|[<>] ?0\.[123]\d\b", re.IGNORECASE)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def test_no_file_outside_seams_and_npu_names_a_vllm_version() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
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
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
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


def written_after_import(path: Path) -> list[str]:
    """What a module of the seams keeps besides definitions: names that are rebound, containers, and caches."""
    tree = ast.parse(path.read_text())
    found = [
        f"{path.name}:{node.lineno}: global {', '.join(node.names)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict | ast.List | ast.Set) and not getattr(
            value, "keys", getattr(value, "elts", None)
        ):
            found.append(f"{path.name}:{node.lineno}: an empty container to be filled")
        if isinstance(value, ast.Call) and "Dictionary" in ast.unparse(value.func):
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(value.func)}")
        if isinstance(node, ast.FunctionDef):
            found += [f"{path.name}:{node.lineno}: @cache" for d in node.decorator_list if "cache" in ast.unparse(d)]
    return found


def test_the_state_of_the_seams_has_one_owner() -> None:
    found = [line for path in SOURCES if room(path) == "seams" for line in written_after_import(path)]
    # Which runner's step is running, and upstream's signatures, which no engine changes.
    assert sorted(line.partition(":")[0] + line.rpartition(":")[2] for line in found) == [
        "by_name.py @cache",
        "serving.py global _running",
        "serving.py global _running",
    ]


def test_state_outside_the_owner_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("known: dict = {}\n@cache\ndef f(x): ...\ndef g():\n    global known\n    known = {}\n")
    assert len(written_after_import(module)) == 3
