# SPDX-License-Identifier: Apache-2.0
"""Find a target in a source tree by its syntax alone, and describe what the contract of a patch can depend on."""

import ast
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import aliases, normal
from .declaration import Target
from .source import SourceTree, SourceUnavailable

_Definition = (
    ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.ImportFrom | ast.Import
)
_DESCRIPTORS = {"staticmethod": "static method", "classmethod": "class method", "property": "property"}


class Description(NamedTuple):
    """What one release has at a target. ``kind`` is "absent" when nothing is there; ``reason`` then says what is
    missing.

    ``calls`` are the names that are called in the body (the last part of a dotted name); ``place`` is where the
    definition is when the target itself only inherits or imports it; ``aliases`` are the module-level copies made by
    ``from ... import``.
    """

    kind: str
    parameters: tuple[str, ...] = ()
    decorators: tuple[str, ...] = ()
    body: str = ""
    calls: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    place: str = ""
    reason: str = ""
    node: ast.AST | None = None

    @property
    def present(self) -> bool:
        """Whether there is something."""
        return self.kind != "absent"

    def as_record(self, calls: frozenset[str]) -> dict[str, Any]:
        """The JSON form, with those of ``calls`` that are made."""
        if not self.present:
            return {"kind": "absent", "reason": self.reason}
        record: dict[str, Any] = {"kind": self.kind, "body": self.body, "parameters": list(self.parameters)}
        for name, value in (
            ("decorators", list(self.decorators)),
            ("calls", sorted(self.calls & calls)),
            ("aliases", list(self.aliases)),
            ("place", self.place),
        ):
            if value:
                record[name] = value
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Description":
        """The inverse of ``as_record``."""
        return cls(
            record["kind"],
            tuple(record.get("parameters", ())),
            tuple(record.get("decorators", ())),
            record.get("body", ""),
            frozenset(record.get("calls", ())),
            tuple(record.get("aliases", ())),
            record.get("place", ""),
            record.get("reason", ""),
        )


def absent(reason: str) -> Description:
    """The description of a target that is not there."""
    return Description("absent", reason=reason)


def flatten(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module or class body is executed, those inside ``if``, ``try`` and ``with``
    included."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and aliases.is_type_checking(node.test):
            yield from flatten(node.orelse)
            continue
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from flatten(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from flatten(handler.body)


def _binds(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name and node.value is not None
    if isinstance(node, ast.ImportFrom | ast.Import):
        return any((alias.asname or alias.name.partition(".")[0]) == name for alias in node.names)
    return False


def _is_accessor(node: ast.stmt) -> bool:
    """``@name.setter`` and its like change a property that was defined before; they are not its definition."""
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(decorator, ast.Attribute) and decorator.attr in ("setter", "deleter", "getter")
        for decorator in node.decorator_list
    )


def _definition(body: list[ast.stmt], name: str) -> _Definition | None:
    """The last statement of a body that binds a name."""
    found: Any = None
    for node in flatten(body):
        if _binds(node, name) and not _is_accessor(node):
            found = node
    return found


class Reader:
    """Descriptions from one source tree; each module is parsed once."""

    def __init__(self, tree: SourceTree) -> None:
        self.tree = tree
        self.module = functools.cache(self._parse)

    def _parse(self, name: str) -> tuple[str, ast.Module] | None:
        path = self.tree.locate(name)
        content = self.tree.read(path) if path is not None else None
        if path is None or content is None:
            return None
        try:
            return path, ast.parse(content)
        except SyntaxError as error:
            raise SourceUnavailable(f"{path} of {self.tree.origin} cannot be parsed: {error}") from error

    def describe(self, target: Target) -> Description:
        """What is at the target, "absent" included. Raises ``SourceUnavailable`` for a module that cannot be parsed."""
        parsed = self.module(target.module)
        if parsed is None:
            return absent(f"there is no module {target.module}")
        place, body = target.module, parsed[1].body
        owner: ast.ClassDef | None = None
        for part in target.owner.split(".") if target.owner else ():
            resolved = self._resolve(place, body, part)
            if resolved is None or not isinstance(resolved[1], ast.ClassDef):
                return absent(f"{target.module} has no class {part}")
            (place, owner), body = resolved, resolved[1].body
        resolved = self._attribute(place, owner, target.name) if owner else self._resolve(place, body, target.name)
        if resolved is None:
            return absent(
                f"{target.module}:{target.owner} has no {target.name}" if owner else f"no {target.name} in {place}"
            )
        where, node = resolved
        description = _describe_node(node)
        path = target.path if where == target.module else f"{where}:{getattr(node, 'name', target.name)}"
        if owner is not None and node not in list(flatten(owner.body)):
            path = f"inherited from {where}"
        return description._replace(
            aliases=tuple(sorted(aliases.sites(self.tree, target, self._body_of(target)))),
            place="" if path == target.path else path,
        )

    def _body_of(self, target: Target) -> list[ast.stmt]:
        parsed = self.module(target.module)
        body = parsed[1].body if parsed else []
        for part in target.owner.split(".") if target.owner else ():
            node = _definition(body, part)
            body = node.body if isinstance(node, ast.ClassDef) else []
        return body

    def _resolve(self, module: str, body: list[ast.stmt], name: str, depth: int = 0) -> tuple[str, Any] | None:
        """The definition of a name in a body, following imports inside the package: ``(module, node)``."""
        node = _definition(body, name)
        if node is None:
            return None
        if isinstance(node, ast.ImportFrom) and depth < 8:
            original = next((alias.name for alias in node.names if (alias.asname or alias.name) == name), name)
            parsed = self.module(module)
            source = aliases.absolute(node, parsed[0]) if parsed else None
            origin = self.module(source) if source else None
            if source is not None and origin is not None:
                return self._resolve(source, origin[1].body, original, depth + 1)
        return module, node

    def _attribute(self, module: str, owner: ast.ClassDef, name: str, depth: int = 0) -> tuple[str, Any] | None:
        """An attribute of a class or, depth first, of its bases inside the package."""
        node = _definition(owner.body, name)
        if node is not None:
            return module, node
        parsed = self.module(module)
        if parsed is None or depth > 8:
            return None
        for base in owner.bases:
            base = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
            if not isinstance(base, ast.Name):
                continue
            resolved = self._resolve(module, parsed[1].body, base.id)
            if resolved is not None and isinstance(resolved[1], ast.ClassDef):
                found = self._attribute(resolved[0], resolved[1], name, depth + 1)
                if found is not None:
                    return found
        return None


def _describe_node(node: Any) -> Description:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = tuple(ast.unparse(decorator) for decorator in node.decorator_list)
        kind = next((_DESCRIPTORS[name] for name in decorators if name in _DESCRIPTORS), "function")
        if any(name.rpartition(".")[2] == "cached_property" for name in decorators):
            kind = "cached property"
        if isinstance(node, ast.AsyncFunctionDef):
            kind = f"async {kind}"
        if _is_generator(node):
            kind = f"generator {kind}"
        return Description(
            kind, normal.parameters(node.args), decorators, normal.fingerprint(node), frozenset(_calls(node)), node=node
        )
    if isinstance(node, ast.ClassDef):
        return Description(
            "class", (), tuple(ast.unparse(d) for d in node.decorator_list), normal.fingerprint(node), node=node
        )
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        return Description("value", body=normal.fingerprint(node.value), node=node)
    return Description("import", body=normal.fingerprint(node), node=node)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions and classes inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from _own_nodes(child)


def _is_generator(node: ast.AST) -> bool:
    return any(isinstance(child, ast.Yield | ast.YieldFrom) for child in _own_nodes(node))


def _calls(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Call):
            if isinstance(child.func, ast.Name):
                yield child.func.id
            elif isinstance(child.func, ast.Attribute):
                yield child.func.attr
