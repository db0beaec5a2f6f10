#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write ``patches/<release>/``: the patch set as diffs for people who build their own vLLM. No patch logic lives in a
diff.

One diff makes ``import vllm`` arm the patch set; one per target module makes that module hand itself over at the end of
its import. Usage: ``scripts/make_patches.py RELEASE... | --all [--check] [--from PATH]``. Sources come from PATH, the
installed vLLM, the cache or the package index, as for ``vllm-ascend-patch upstream``.
"""

import argparse
import ast
import difflib
import os
import shutil
import sys
from pathlib import Path

os.environ["VLLM_ASCEND_PATCH"] = "0"  # this process generates the patch set; it does not want it

from vllm_ascend_patch.commands.upstream import locate
from vllm_ascend_patch.patching.source import SourceTree, SourceUnavailable, module_name
from vllm_ascend_patch.releases import declarations, records

FOLDER = Path(__file__).resolve().parents[1] / "patches"
ARM = "import vllm_ascend_patch  # isort:skip  # noqa: F401  # arms the patch set; VLLM_ASCEND_PATCH=0 keeps it off\n"
HAND_OVER = (
    "\n\nimport vllm_ascend_patch  # noqa: E402  # the patches of this module; the last statement of its import\n"
    "\nvllm_ascend_patch.hand_over(__name__)\n"
)


def armed(source: str) -> str:
    """The package's ``__init__.py`` with the arming import after the version import, before anything else of vLLM is
    loaded."""
    after = 0
    for node in ast.parse(source).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        version = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module == "version"
        if docstring or version or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            after = node.end_lineno or after
        else:
            break
    lines = source.splitlines(keepends=True)
    return "".join([*lines[:after], ARM, *lines[after:]])


def handing_over(source: str) -> str:
    """A target module with the hand-over at its end."""
    return source.rstrip("\n") + "\n" + HAND_OVER


def target_modules(release: str) -> list[str]:
    """The modules that the patches declared for a release change, in order of declaration."""
    covering = (patch.place.module for patch in declarations.patches() if records.covers(patch, release))
    return list(dict.fromkeys(covering))


def diffs(release: str, tree: SourceTree) -> dict[str, str]:
    """File name -> content of everything in the release's folder. Raises ``SourceUnavailable`` for a missing
    module."""
    files: dict[str, str] = {}
    changes = [(records.PACKAGE, armed)] + [(module, handing_over) for module in target_modules(release)]
    for number, (module, change) in enumerate(changes, start=1):
        path = tree.locate(module)
        content = tree.read(path) if path is not None else None
        if path is None or content is None:
            raise SourceUnavailable(
                f"vLLM {release} has no module {module}: the releases of its patches are declared wrongly"
            )
        before = content.decode()
        body = difflib.unified_diff(
            before.splitlines(keepends=True), change(before).splitlines(keepends=True), f"a/{path}", f"b/{path}"
        )
        ids = [
            patch.id
            for patch in declarations.patches()
            if patch.place.module == module and records.covers(patch, release)
        ]
        title = (
            f"Hand {module_name(path)} to the patch set: {', '.join(ids)}"
            if ids
            else "Arm the patch set with import vllm"
        )
        files[f"{number:04d}-{module.removeprefix('vllm.').replace('.', '-')}.patch"] = (
            f"{title}\n\n---\n{''.join(body)}"
        )
    files["series"] = "".join(f"{name}\n" for name in files)
    return files


def write(release: str, files: dict[str, str]) -> None:
    """Replace the release's folder."""
    folder = FOLDER / release
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def outdated(release: str, files: dict[str, str]) -> list[str]:
    """Names of files that are missing, superfluous or different."""
    folder = FOLDER / release
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} if folder.is_dir() else {}
    return sorted(name for name in {*files, *there} if files.get(name) != there.get(name))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE")
    parser.add_argument("--all", action="store_true", help="every release that has a folder already")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a folder is not current")
    parser.add_argument("--from", dest="path", help="wheel, source archive or directory of the one release")
    options = parser.parse_args()
    releases = sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) if options.all else options.releases
    if not releases:
        parser.error("name a release, or give --all")
    status = 0
    for release in releases:
        try:
            files = diffs(release, locate(options.path or release, release).tree)
        except SourceUnavailable as error:
            print(f"{release}: {error}", file=sys.stderr)
            return 1
        if options.check:
            wrong = outdated(release, files)
            status = status or (1 if wrong else 0)
            print(f"{release}: {'not current: ' + ', '.join(wrong) if wrong else 'current'}")
        else:
            write(release, files)
            print(f"{release}: {len(files) - 1} diffs")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
