# SPDX-License-Identifier: Apache-2.0
"""Who holds a copy of a name: ``from module import name`` at module level, re-exports included, and plain assignments.

Found by syntax in a source tree. Imports inside functions are no copies: they look the name up when they run.
"""

import ast
from collections.abc import Iterator

from .declaration import Target
from .source import SourceTree, module_name


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is ``TYPE_CHECKING``: what it guards never runs."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def absolute(node: ast.ImportFrom, path: str) -> str | None:
    """The full name of the module that an import statement in the file ``path`` names."""
    if not node.level:
        return node.module
    parts = path.split("/")[: -node.level]
    if not parts:
        return None
    return ".".join([*parts, *([node.module] if node.module else [])])


def _imports(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
    """The ``from`` imports that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            yield from _imports(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for field in ("body", "orelse", "finalbody"):
                yield from _imports(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _imports(handler.body)


def _assignments(body: list[ast.stmt], name: str) -> Iterator[str]:
    """Names that a body makes equal to ``name``: ``other = name``."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == name:
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id


def sites(tree: SourceTree, target: Target, body: list[ast.stmt]) -> set[str]:
    """Every copy of the target, as ``"package.module:name"``. ``body`` is the body that defines it.

    For a method only the copies in its own class body count: modules that import the class see the class, hence the patch.
    """
    prefix = f"{target.module}:{target.owner}." if target.owner else f"{target.module}:"
    copies = {prefix + name for name in _assignments(body, target.name)}
    if target.owner:
        return copies
    known: set[tuple[str, str]] = {(target.module, target.name)}
    known |= {(target.module, copy.partition(":")[2]) for copy in copies}
    parsed: dict[str, list[ast.ImportFrom]] = {}
    while True:
        words = {name for _, name in known}
        star = {f"{module.rpartition('.')[2]} import *" for module, _ in known}
        for path, content in tree.containing(*words, *star):
            if path not in parsed:
                parsed[path] = list(_imports(_body(content)))
        found = {
            (module_name(path), alias)
            for path, imports in parsed.items()
            for node in imports
            for alias in _copies(node, absolute(node, path), known)
        } - known
        if not found:
            break
        known |= found
    return {f"{module}:{name}" for module, name in known} - {str(target)}


def _body(content: bytes) -> list[ast.stmt]:
    """The statements of a file; none when this Python cannot parse it, because then it cannot import it either."""
    try:
        return ast.parse(content).body
    except SyntaxError:
        return []


def _copies(node: ast.ImportFrom, source: str | None, known: set[tuple[str, str]]) -> Iterator[str]:
    """The names under which one import statement binds a known copy."""
    for alias in node.names:
        if alias.name == "*":
            yield from (name for module, name in known if module == source and not name.startswith("_"))
        elif (source, alias.name) in known:
            yield alias.asname or alias.name
