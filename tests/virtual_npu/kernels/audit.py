# SPDX-License-Identifier: Apache-2.0
"""Finds checks that no test trips: records which calls of the limit helpers failed, and lists all that the source has."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKS = (
    "require",
    "require_absent",
    "require_contiguous",
    "require_dim",
    "require_dtype",
    "require_ids",
    "require_shape",
    "require_unique",
    "unsupported",
)


class Recorder:
    """Wraps the checks in every kernel module and keeps the lines on which one failed."""

    def __init__(self, modules: Iterable[ModuleType], replace: Callable[[ModuleType, str, Any], None]) -> None:
        self.failed: set[tuple[str, int]] = set()
        for module in modules:
            for name in CHECKS:
                if hasattr(module, name):
                    replace(module, name, self._wrap(getattr(module, name), name == "unsupported"))

    def _wrap(self, check: Callable[..., Any], always: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            where = (frame.f_code.co_filename, frame.f_lineno)
            try:
                result = check(*args, **kwargs)
            except RuntimeError:
                self.failed.add(where)
                raise
            if always:
                self.failed.add(where)
            return result

        return call


def sites(module: ModuleType) -> Iterator[tuple[str, int, int, str]]:
    """Every call of a check in a module: file, first and last line, text."""
    file = inspect.getfile(module)
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in CHECKS:
            yield file, node.lineno, node.end_lineno or node.lineno, ast.unparse(node)


def never_tripped(modules: Iterable[ModuleType], failed: set[tuple[str, int]]) -> list[str]:
    """The checks of some modules that did not fail on any of these (file, line) pairs."""
    return [
        f"{Path(file).name}:{first}: {text[:110]}"
        for module in modules
        for file, first, last, text in sites(module)
        if not any(f == file and first <= line <= last for f, line in failed)
    ]
