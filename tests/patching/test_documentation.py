# SPDX-License-Identifier: Apache-2.0
"""The generated tables say what the declarations say, and the files that hold them are current."""

from pathlib import Path

import pytest

from tests.support.environment import ROOT
from vllm_ascend_patch import envs
from vllm_ascend_patch.commands import documentation
from vllm_ascend_patch.releases import declarations, records

FILES = [Path(ROOT) / "README.md", *sorted((Path(ROOT) / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_generated_blocks_are_current(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert documentation.regenerate(text) == text, f"run: vllm-ascend-patch docs {path.name}"


def test_the_tables_are_complete() -> None:
    assert all(f"| `{name}` |" in documentation.environment_table() for name in envs.VARIABLES)
    assert all(f"`{patch.id}`" in documentation.patch_table() for patch in declarations.patches())
    assert all(f"| {release} |" in documentation.release_table() for release in records.STORE.releases())
    for table in (documentation.environment_table(), documentation.patch_table(), documentation.release_table()):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_a_block_is_replaced_between_its_markers_only() -> None:
    block = "<!-- generated: environment -->\nold\n<!-- end of generated: environment -->"
    text = documentation.regenerate(f"before\n{block}\nafter\n")
    assert text.startswith("before\n<!-- generated: environment -->\n| Variable |")
    assert text.endswith("<!-- end of generated: environment -->\nafter\n")
    assert "\nold\n" not in text
    assert documentation.regenerate(text) == text


@pytest.mark.parametrize(
    "text", ["<!-- generated: nothing -->\n<!-- end of generated: nothing -->", "<!-- generated: patches -->\n"]
)
def test_a_wrong_marker_is_an_error(text: str) -> None:
    with pytest.raises(documentation.DocumentationError):
        documentation.regenerate(text)
