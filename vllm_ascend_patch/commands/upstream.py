# SPDX-License-Identifier: Apache-2.0
"""The ``upstream`` command: record a vLLM release, or compare one with its record. Reads sources only, imports no
vLLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from packaging.version import InvalidVersion, Version

from vllm_ascend_patch.patching.compare import compare, diff
from vllm_ascend_patch.patching.declaration import Patch, Target
from vllm_ascend_patch.patching.describe import Description, Reader
from vllm_ascend_patch.patching.record import Record
from vllm_ascend_patch.patching.source import SourceTree, SourceUnavailable, open_tree
from vllm_ascend_patch.patching.verdict import Finding, Verdict
from vllm_ascend_patch.releases import declarations, records, runner
from vllm_ascend_patch.releases.guard import installed_release, installed_tree

from . import archives
from .calling import call, version_number
from .terminal import console, table


class Upstream(NamedTuple):
    """One release of vLLM at hand: its version, its sources, and where these come from."""

    release: str
    tree: SourceTree
    source: str


def locate(what: str | None, release: str | None = None) -> Upstream:
    """The release meant by a version, a wheel, a source archive or a directory; None means the installed one.

    A version that is neither installed nor cached is fetched from the package index. Raises ``SourceUnavailable``.
    """
    if what is None or (what == installed_release() and release is None):
        tree, found = installed_tree(), installed_release()
        if tree is None or found is None:
            raise SourceUnavailable(
                "vLLM is not installed here; give a version, a wheel, a source archive or a directory"
            )
        return Upstream(release or found, tree, f"installed at {tree.origin}" if what is None else f"vllm {found}")
    if Path(what).exists():
        tree = open_tree(records.PACKAGE, what)
        found = release or tree.release() or _release_in_name(Path(what).name)
        if found is None:
            raise SourceUnavailable(f"{what} does not say which release it is; add --release VERSION")
        return Upstream(found, tree, Path(what).name)
    try:
        version = str(Version(what))
    except InvalidVersion:
        raise SourceUnavailable(f"{what!r} is neither a version of vLLM nor an existing path") from None
    return Upstream(
        release or version, open_tree(records.PACKAGE, archives.fetch(records.PACKAGE, version)), f"vllm {version}"
    )


def _release_in_name(name: str) -> str | None:
    """The version in ``vllm-X.Y.Z.tar.gz`` or ``vllm-X.Y.Z-cp38-abi3-...whl``."""
    parts = name.removesuffix(".tar.gz").removesuffix(".zip").split("-")
    try:
        return Version(parts[1]).public if len(parts) > 1 else None
    except InvalidVersion:
        return None


class Row(NamedTuple):
    """The outcome for one patch, with the two descriptions that were compared."""

    patch: Patch
    verdict: Verdict
    recorded: Description | None
    found: Description


def check(upstream: Upstream) -> tuple[Record | None, list[Row], list[str]]:
    """Compare a release with its own record, or with the closest one: baseline, a row per patch, watched places that
    changed."""
    baseline = records.STORE.get(upstream.release) or records.STORE.closest(upstream.release)
    reader = Reader(upstream.tree)
    rows = []
    for patch in declarations.patches():
        if not records.covers(patch, upstream.release):
            verdict = Verdict(Finding.NOT_NEEDED, upstream.release, (f"declared for {patch.releases}",))
            rows.append(Row(patch, verdict, None, Description("absent")))
            continue
        if runner.gone_with_v1(patch, upstream.tree):
            verdict = Verdict(Finding.NOT_NEEDED, upstream.release, ("this vLLM has no model runner V1",))
            rows.append(Row(patch, verdict, None, Description("absent")))
            continue
        recorded = baseline.targets.get(patch.target) if baseline is not None else None
        found = reader.describe(patch.place)
        rows.append(Row(patch, compare(patch, recorded, found, upstream.release), recorded, found))
    declared = {row.patch.target for row in rows}
    changed = []
    for target in records.WATCHED if baseline is not None else ():
        before = baseline.targets.get(target) if baseline is not None else None
        if target in declared or before is None:
            continue
        now = reader.describe(Target.parse(target))
        if (before.kind, before.parameters, before.body) != (now.kind, now.parameters, now.body):
            changed.append(target)
    return baseline, rows, changed


def differences(upstream: Upstream, baseline: Record, rows: list[Row]) -> str:
    """Unified diffs, baseline to release, of the targets whose body or signature changed; needs the baseline's
    sources."""
    changed = [
        row
        for row in rows
        if row.recorded is not None
        and (row.recorded.body, row.recorded.parameters) != (row.found.body, row.found.parameters)
    ]
    if not changed:
        return ""
    try:
        before = Reader(locate(baseline.release).tree)
    except SourceUnavailable as error:
        return f"(no diff: the sources of the recorded release {baseline.release} are not at hand: {error})\n"
    names = (baseline.release, upstream.release)
    return "".join(diff(row.patch.target, before.describe(row.patch.place), row.found, names) for row in changed)


@click.group()
def upstream() -> None:
    """Record what a vLLM release has at every target, and compare releases with the records."""


@upstream.command("record")
@click.argument("what", nargs=-1, metavar="[VERSION|WHEEL|SDIST|DIR]...")
@click.option("--release", callback=version_number, help="The version, when the source does not say it.")
@click.option("--all", "again", is_flag=True, help="Record every recorded release again, after a declaration changed.")
def record_command(what: tuple[str, ...], release: str | None, again: bool) -> None:
    """Write the record of each release."""
    if bool(what) == again:
        raise click.UsageError("name the releases to record, or give --all")
    for one in what or records.STORE.releases():
        found = _located(one, release)
        made = Record.make(found.release, found.source, found.tree, records.wanted(found.release))
        missing = [patch.id for patch in declarations.patches() if _missing(patch, made)]
        try:
            written = records.STORE.write(made)
        except OSError as error:
            raise click.ClickException(f"the record cannot be written: {error}") from None
        console().print(f"{written}: {len(made.targets)} targets", highlight=False, soft_wrap=True)
        if missing:
            console().print(f"  declared for {found.release} but absent there: {', '.join(missing)}", highlight=False)


def _missing(patch: Patch, made: Record) -> bool:
    return records.covers(patch, made.release) and patch.kind != "add" and not made.targets[patch.target].present


def _located(what: str | None, release: str | None) -> Upstream:
    try:
        return locate(what, release)
    except SourceUnavailable as error:
        raise click.ClickException(str(error)) from None


@upstream.command("check")
@click.argument("what", nargs=-1, metavar="[VERSION|WHEEL|SDIST|DIR]...")
@click.option("--release", callback=version_number, help="The version, when the source does not say it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_command(what: tuple[str, ...], release: str | None, as_json: bool) -> int:
    """Compare releases (default: the installed one) with the records. Exit code 1 when a patch does not fit."""
    reports: list[dict[str, Any]] = []
    for one in what or (None,):
        found = _located(one, release)
        baseline, rows, changed = check(found)
        text = differences(found, baseline, rows) if baseline is not None else ""
        reports.append(
            {
                "release": found.release,
                "compared_with": baseline.release if baseline is not None else None,
                "fits": not any(row.verdict.refuses for row in rows),
                "patches": [
                    {
                        "id": row.patch.id,
                        "target": row.patch.target,
                        "verdict": str(row.verdict.finding),
                        "reason": row.verdict.line,
                    }
                    for row in rows
                ],
                "watched_changes": changed,
                "diff": text,
            }
        )
        if not as_json:
            _print(reports[-1])
    if as_json:
        print(json.dumps(reports, indent=1))
    return 0 if all(report["fits"] for report in reports) else 1


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments; returns the exit code."""
    return call(upstream, argv, "upstream")


def _print(report: dict[str, Any]) -> None:
    known = report["compared_with"]
    against = (
        "no record at all"
        if known is None
        else "its own record"
        if known == report["release"]
        else f"the record of {known}"
    )
    rows = [
        (row["id"], row["verdict"], row["reason"]) for row in report["patches"] if row["verdict"] != Finding.NOT_NEEDED
    ]
    out = console()
    out.print(table(f"vLLM {report['release']} against {against}", ("patch", "verdict", "reason"), rows))
    for target in report["watched_changes"]:
        out.print(f"changed, no patch depends on it: {target}", highlight=False, soft_wrap=True)
    if report["diff"]:
        out.print(report["diff"], markup=False, highlight=False, soft_wrap=True, end="")
