# SPDX-License-Identifier: Apache-2.0
"""The normal form of a piece of Python: its syntax tree without docstrings, annotations, comments and formatting.

``fingerprint`` hashes it with a serialisation of its own, because ``ast.dump`` and ``ast.unparse`` differ between
Python versions and a record made with one version is compared under another. ``render`` prints it for a human, for
diffs.
"""

import ast
import copy
import hashlib
from collections.abc import Iterator
from typing import Any

_IGNORED = frozenset({"annotation", "returns", "type_comment", "type_ignores", "type_params", "ctx", "kind"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:] or [ast.Pass()]
    return body


def _statements(body: list[Any]) -> Iterator[Any]:
    """The statements that do something: a bare annotation does not, and an annotated assignment is an assignment."""
    for node in body:
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield ast.Assign(targets=[node.target], value=node.value)
        else:
            yield node


def _pieces(values: list[ast.expr]) -> list[Any]:
    """The parts of an f-string with neighbouring literal parts joined; Python versions split them differently."""
    joined: list[Any] = []
    for value in values:
        if isinstance(value, ast.Constant) and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(str(joined[-1].value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            joined.append(value)
    return joined


def _serialise(node: Any) -> Iterator[str]:
    if isinstance(node, ast.AST):
        yield type(node).__name__
        yield "("
        for name, value in ast.iter_fields(node):
            if name in _IGNORED or value is None or value == []:
                continue
            if isinstance(node, ast.JoinedStr):
                value = _pieces(value)
            elif name == "body" and isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)):
                value = _without_docstring(value)
            yield name
            yield "="
            yield from _serialise(value)
            yield ","
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in _statements(node):
            yield from _serialise(item)
            yield ","
        yield "]"
    else:
        yield f"{type(node).__name__}:{node!r}"


def fingerprint(node: ast.AST) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a node's normal form, without a function's name, signature,
    decorators."""
    if isinstance(node, _FUNCTIONS):
        parts: Any = [type(node).__name__, *_serialise(_without_docstring(node.body))]
    else:
        parts = _serialise(node)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


class _Strip(ast.NodeTransformer):
    def _function(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body = _without_docstring(node.body)
        node.returns = None
        for argument in [
            *node.args.posonlyargs,
            *node.args.args,
            *node.args.kwonlyargs,
            node.args.vararg,
            node.args.kwarg,
        ]:
            if argument is not None:
                argument.annotation = None
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.generic_visit(node)
        node.body = _without_docstring(node.body)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        if node.value is None:
            return ast.Pass()
        return ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)


def render(node: ast.AST) -> str:
    """The normal form as text. Only for reading and for diffs made by one Python version."""
    return ast.unparse(ast.fix_missing_locations(_Strip().visit(copy.deepcopy(node)))) + "\n"


def parameters(arguments: ast.arguments) -> tuple[str, ...]:
    """A signature without annotations, one string per parameter: ``("self", "/", "size=1", "*", "flag=False",
    "**extra")``."""
    shown: list[str] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for index, (argument, default) in enumerate(zip(positional, defaults, strict=True), start=1):
        shown.append(argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}")
        if index == len(arguments.posonlyargs):
            shown.append("/")
    if arguments.vararg is not None:
        shown.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        shown.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        shown.append(argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}")
    if arguments.kwarg is not None:
        shown.append(f"**{arguments.kwarg.arg}")
    return tuple(shown)
