# SPDX-License-Identifier: Apache-2.0
"""The generated tables say what the declarations say, and the files that hold them are current."""

import re
from pathlib import Path

import pytest

from tests.support.command_line import Called, called
from tests.support.environment import ROOT
from vllm_ascend_patch import envs
from vllm_ascend_patch.commands import documentation
from vllm_ascend_patch.core.operator_limits import ROWS
from vllm_ascend_patch.releases import declarations, records

PAGES = documentation.pages(Path(ROOT))


def run(*arguments: str | Path) -> Called:
    return called(documentation.command, *arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_generated_blocks_are_current(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert documentation.regenerate(text) == text, f"run: vllm-ascend-patch docs {path.name}"


def test_every_table_is_in_the_page_that_readers_look_for_it_in() -> None:
    found = {
        (path.name, name) for path in PAGES for name in re.findall("<!-- generated: ([a-z-]+) -->", path.read_text())
    }
    assert found >= {
        ("README.md", "environment"),
        ("operator-limits.md", "operator-limits"),
        ("releases.md", "release-ranges"),
        ("releases.md", "releases"),
        ("patches.md", "patches"),
    }


def test_the_front_page_is_short() -> None:
    assert len((Path(ROOT) / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_check_passes_on_the_projects_pages() -> None:
    result = run("--check", *PAGES)
    assert (result.exit_code, result.output) == (0, "")


def test_check_names_a_page_that_is_not_current_and_leaves_it_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: releases -->\nold\n<!-- end of generated: releases -->\n")
    result = run("--check", page)
    assert (result.exit_code, result.output) == (1, f"not current: {page}\n")
    assert "\nold\n" in page.read_text()
    result = run(page)
    assert (result.exit_code, result.output) == (0, f"rewritten: {page}\n")
    assert "\nold\n" not in page.read_text()
    assert run("--check", page).exit_code == 0


def test_the_tables_are_complete() -> None:
    assert all(f"| `{name}` |" in documentation.environment_table() for name in envs.VARIABLES)
    assert all(f"| `{patch.id}`" in documentation.patch_tables() for patch in declarations.patches())
    assert all(f"| `{row.operator}` | {row.argument} |" in documentation.operator_table() for row in ROWS)
    assert all(f"| {release} |" in documentation.release_table() for release in records.STORE.releases())
    for make in documentation.TABLES.values():
        for table in (part for part in make().split("\n\n") if part.startswith("|")):
            assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_every_seam_has_a_heading_in_the_table_of_patches() -> None:
    assert sorted(module for _, modules in documentation.GROUPS for module in modules) == sorted(declarations.SEAMS)


def test_patches_that_share_a_reason_state_it_once() -> None:
    lines = documentation.patch_tables().splitlines()
    reasons = {(patch.upstream, patch.remove_when) for patch in declarations.patches()}
    for upstream, remove_when in reasons:
        ending = f"| {upstream} | {remove_when} |"
        named = [line for line in lines if line.endswith(ending)]
        sharing = [p.id for p in declarations.patches() if (p.upstream, p.remove_when) == (upstream, remove_when)]
        assert all(sum(f"`{patch}`" in line for line in named) == 1 for patch in sharing)
        assert len(named) <= len(documentation.GROUPS)


def test_ranges_count_every_release_once_and_hold_one_standing_each() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in documentation.range_table().splitlines()[2:]]
    assert sum(int(row[1]) for row in rows) == len(records.STORE.releases())
    ran = [release for release in records.STORE.releases() if records.standing(release) != records.UNTRIED]
    for name, count, state, _stack in rows:
        if state == records.UNTRIED:
            members = name.split(", ")
            assert not set(members) & set(ran)
        else:
            first, _, last = name.partition(" to ")
            members = ran[ran.index(first) : ran.index(last or first) + 1]
            assert {records.standing(release).replace(f"vLLM {release}", "it") for release in members} == {state}
        assert len(members) == int(count)


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
