# SPDX-License-Identifier: Apache-2.0
"""What no linter checks in a source file: ``python -m scripts.source_rules [--fix] [FILE …]``; by default all of git's.

- Its first line, or the second of a script, is the licence.
- Code in a docstring stands in double back-ticks. ``--fix`` doubles single ones. What click prints is left alone.

Exit code 1 when a file breaks a rule.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ENDINGS = (".py", ".sh", ".c", ".cpp", ".h")
LICENCE = "SPDX-License-Identifier: Apache-2.0"
_SINGLE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def lacks_the_licence(path: Path) -> bool:
    return not any(LICENCE in line for line in path.read_text().splitlines()[:2])


def single_ticks(source: str) -> list[int]:
    """Indices of the lines of docstrings in which code stands in single back-ticks."""
    lines = source.splitlines()
    return [
        number
        for first, last in _docstrings(ast.parse(source))
        for number in range(first, last)
        if _SINGLE.search(lines[number])
    ]


def doubled(source: str) -> str:
    """The source with double back-ticks in its docstrings."""
    lines = source.splitlines(keepends=True)
    for number in single_ticks(source):
        lines[number] = _SINGLE.sub(r"``\1``", lines[number])
    return "".join(lines)


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """First index and end of the lines of each string that stands for itself, attributes' included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("command" in ast.unparse(d) for d in node.decorator_list):
            continue
        for statement in getattr(node, "body", []) if not isinstance(node, (ast.Lambda, ast.IfExp)) else []:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno - 1, statement.end_lineno or statement.lineno


def main() -> int:
    fix = "--fix" in sys.argv[1:]
    names = [name for name in sys.argv[1:] if name != "--fix"]
    if not names:
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    problems = []
    for path in (Path(name) for name in names if name.endswith(ENDINGS) and Path(name).is_file()):
        if lacks_the_licence(path):
            problems.append(f"{path}:1: the first line must be a comment with {LICENCE}")
        if path.suffix == ".py":
            source = path.read_text()
            if fix:
                path.write_text(doubled(source))
            else:
                problems += [
                    f"{path}:{number + 1}: code in a docstring stands in double back-ticks (--fix)"
                    for number in single_ticks(source)
                ]
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
