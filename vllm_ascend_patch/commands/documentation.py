# SPDX-License-Identifier: Apache-2.0
"""The generated parts of the documentation: tables made from the declarations, put between markers in Markdown files.

A block is ``<!-- generated: NAME -->``, anything, ``<!-- end of generated: NAME -->``. ``vllm-ascend-patch docs
FILE...`` rewrites the blocks; with ``--check`` it only says whether they are current.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from vllm_ascend_patch import envs
from vllm_ascend_patch.releases import declarations, records

_BLOCK = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end of generated: (?P=name) -->", re.S)
_START = re.compile(r"<!-- generated: ([\w-]+) -->")


class DocumentationError(ValueError):
    """A marker names no table, or has no end."""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)])


def environment_table() -> str:
    """Every environment variable: name, default, values, meaning, when it is read."""
    return _table(
        ("Variable", "Default", "Values", "Meaning", "Read"),
        (
            (
                f"`{variable.name}`",
                f"`{variable.default}`" if variable.default else "",
                variable.values,
                variable.meaning,
                variable.when,
            )
            for variable in envs.VARIABLES.values()
        ),
    )


def patch_table() -> str:
    """Every patch: id, target, what goes wrong without it, releases, upstream status, when to remove it."""
    return _table(
        ("Patch", "Kind", "Target", "Without it", "vLLM", "Upstream", "Remove when"),
        (
            (
                f"`{patch.id}`" + ("" if patch.default else " (off by default)"),
                str(patch.kind),
                f"`{patch.target}`",
                patch.summary,
                patch.releases or "all",
                patch.upstream,
                patch.remove_when,
            )
            for patch in declarations.patches()
        ),
    )


def release_table() -> str:
    """Every recorded release: the patches declared for it, and what has been run on it."""
    patches = declarations.patches()
    return _table(
        ("vLLM", "Patches", "State"),
        (
            (release, str(sum(records.covers(patch, release) for patch in patches)), records.standing(release))
            for release in reversed(records.STORE.releases())
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "environment": environment_table,
    "patches": patch_table,
    "releases": release_table,
}


def regenerate(text: str) -> str:
    """The text with every generated block made anew. Raises :class:`DocumentationError`."""
    for name in _START.findall(text):
        if name not in TABLES:
            raise DocumentationError(f"no table is called {name!r}; the tables are: {', '.join(TABLES)}")
        if f"<!-- end of generated: {name} -->" not in text:
            raise DocumentationError(f"the block {name!r} has no end: add <!-- end of generated: {name} -->")

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n{TABLES[name]()}\n<!-- end of generated: {name} -->"

    return _BLOCK.sub(block, text)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 when a block is not current.")
def docs(files: tuple[Path, ...], check: bool) -> None:
    """Rewrite the generated tables of Markdown files."""
    stale = []
    for path in files:
        before = path.read_text(encoding="utf-8")
        try:
            after = regenerate(before)
        except DocumentationError as error:
            raise click.ClickException(f"{path}: {error}") from None
        if after != before:
            stale.append(str(path))
            if not check:
                path.write_text(after, encoding="utf-8")
    if stale:
        click.echo(("not current: " if check else "rewritten: ") + ", ".join(stale))
    raise SystemExit(1 if check and stale else 0)


def command(argv: list[str]) -> None:
    """Run the command with its arguments; ends the process."""
    docs(argv, prog_name="vllm-ascend-patch docs")
