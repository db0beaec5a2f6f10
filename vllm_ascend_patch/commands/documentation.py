# SPDX-License-Identifier: Apache-2.0
"""The generated parts of the documentation: tables made from the declarations, put between markers in Markdown files.

A block is ``<!-- generated: NAME -->``, anything, ``<!-- end of generated: NAME -->``. ``vllm-ascend-patch docs
FILE...`` rewrites the blocks; with ``--check`` it only says whether they are current. Which files have blocks:
``pages``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from vllm_ascend_patch import envs
from vllm_ascend_patch.core import operator_limits
from vllm_ascend_patch.patching.declaration import Patch
from vllm_ascend_patch.releases import declarations, records, served_models
from vllm_ascend_patch.releases.pinned import PINNED, pinned

from .calling import call

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


#: The seams in the README's order: the heading, and the modules of ``releases/declared`` that belong under it.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Input preparation and data-parallel metadata", ("step",)),
    ("The same in the oldest releases, whose ranks exchange token counts only", ("step_before_0_12",)),
    ("The engines' own exchange", ("engines",)),
    ("MoE forward", ("moe",)),
    ("Model runner V2, met where it serves", ("runner_v2",)),
    ("Device port", ("port", "latent", "graphs")),
)


def patch_tables() -> str:
    """Every patch, by seam: id, target, releases, what goes wrong without it; and once for those that share it, what
    upstream has instead and when to remove them."""
    return "\n\n".join(_seam(heading, declarations.declared(*modules)) for heading, modules in GROUPS)


def _seam(heading: str, patches: Sequence[Patch]) -> str:
    what = _table(
        ("Patch", "Target", "vLLM", "Without it"),
        (
            (
                f"`{patch.id}`" + ("" if patch.default else " (off by default)"),
                f"{patch.kind} `{patch.target}`",
                patch.releases or "all",
                patch.summary,
            )
            for patch in patches
        ),
    )
    shared: dict[tuple[str, str], list[str]] = {}
    for patch in patches:
        shared.setdefault((patch.upstream, patch.remove_when), []).append(f"`{patch.id}`")
    whence = _table(
        ("Patches", "Upstream", "Remove when"),
        ((", ".join(ids), upstream, remove_when) for (upstream, remove_when), ids in shared.items()),
    )
    return f"### {heading}\n\n{what}\n\n{whence}"


def release_table() -> str:
    """Every recorded release: the patches declared for it, and what has been run on it."""
    patches = declarations.patches()
    return _table(
        ("vLLM", "Patches", "State", "torch and torch_npu"),
        (
            (
                release,
                str(sum(records.covers(patch, release) for patch in patches)),
                records.standing(release),
                _stacks(release),
            )
            for release in reversed(records.STORE.releases())
        ),
    )


def range_table() -> str:
    """The releases that were run, newest first, neighbours of equal standing in one row; then all that were not."""
    ranges: list[tuple[tuple[str, str], list[str]]] = []
    untried: list[str] = []
    for release in reversed(records.STORE.releases()):
        state = records.standing(release).replace(f"vLLM {release}", "it"), _stacks(release)
        if state[0] == records.UNTRIED:
            untried.append(release)
        elif ranges and ranges[-1][0] == state:
            ranges[-1][1].append(release)
        else:
            ranges.append((state, [release]))
    rows = [(_range(releases), str(len(releases)), *state) for state, releases in ranges]
    if untried:
        rows.append((", ".join(reversed(untried)), str(len(untried)), records.UNTRIED, ""))
    return _table(("vLLM", "Releases", "State", "torch and torch_npu"), rows)


def _stacks(release: str) -> str:
    """The versions that a release was run with; one number where torch and torch_npu have the same."""
    return ", ".join(
        stack.torch if stack.torch == stack.torch_npu else f"{stack.torch} with {stack.torch_npu}"
        for stack in records.stacks(release)
    )


def _range(newest_first: Sequence[str]) -> str:
    oldest, newest = newest_first[-1], newest_first[0]
    return oldest if oldest == newest else f"{oldest} to {newest}"


def stack_table() -> str:
    """The torch and torch_npu of deployments of each release, and which releases were run with exactly these."""
    run = [release for release in records.STORE.releases() if records.stacks(release)]
    return _table(
        (
            "vLLM",
            "torch",
            "torch_npu → CANN, by the vendor's table",
            "Run here with it and its newest torch_npu",
        ),
        (
            (
                _range([row.last, row.first]),
                row.stack.torch,
                row.cann,
                ", ".join(r for r in run if pinned(r) == row and row.stack in records.stacks(r)) or "none",
            )
            for row in PINNED
        ),
    )


def operator_table() -> str:
    """Every operator argument that grows with a deployment, its limit, and what keeps it."""
    return _table(
        ("Operator", "Argument", "Grows with", "Limit", "Source", "Kept by"),
        (
            (f"`{row.operator}`", row.argument, row.grows_with, row.limit, row.source, row.kept_by)
            for row in operator_limits.ROWS
        ),
    )


def model_table() -> str:
    """Every architecture with experts, what of it was exercised, and what came of it."""
    return _table(
        ("Architecture", "vLLM", "Exercised", "Standing", "Message, or why not", "Commit"),
        (
            (
                f"`{row.architecture}`",
                ", ".join(row.releases) or "its Transformers backend",
                row.feature,
                row.standing,
                row.why,
                row.commit,
            )
            for row in served_models.rows()
        ),
    )


def model_counts() -> str:
    """How many rows of the models' table have which standing."""
    found = [row.standing.partition(":")[0] for row in served_models.rows()]
    return _table(("Standing", "Rows"), ((name, str(found.count(name))) for name in sorted(set(found))))


TABLES: dict[str, Callable[[], str]] = {
    "environment": environment_table,
    "model-counts": model_counts,
    "models": model_table,
    "operator-limits": operator_table,
    "patches": patch_tables,
    "release-ranges": range_table,
    "releases": release_table,
    "stacks": stack_table,
}


def pages(root: Path) -> list[Path]:
    """The project's Markdown files that have a generated block: of ``README.md`` and ``docs/``, in order."""
    candidates = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in candidates if _START.search(path.read_text(encoding="utf-8"))]


def regenerate(text: str) -> str:
    """The text with every generated block made anew. Raises ``DocumentationError``."""
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
def docs(files: tuple[Path, ...], check: bool) -> int:
    """Rewrite the generated tables of Markdown files."""
    stale = []
    for path in files:
        try:
            before = path.read_text(encoding="utf-8")
            after = regenerate(before)
        except (DocumentationError, UnicodeDecodeError) as error:
            raise click.ClickException(f"{path}: {error}") from None
        if after != before:
            stale.append(str(path))
            if not check:
                path.write_text(after, encoding="utf-8")
    if stale:
        click.echo(("not current: " if check else "rewritten: ") + ", ".join(stale))
    return 1 if check and stale else 0


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments; returns the exit code."""
    return call(docs, argv, "docs")
