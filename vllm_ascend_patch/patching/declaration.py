# SPDX-License-Identifier: Apache-2.0
"""The declaration of one patch: a frozen record, checked when it is made. It must not import, resolve or change
anything."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import InvalidPatch
from .words import Words

_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_ID = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


class Kind(Words):
    """How a patch changes its target."""

    WRAP = "wrap"
    """``implementation(original, *args, **kwargs)`` runs instead, and decides when to call the original."""

    REPLACE = "replace"
    """The implementation takes the place of the original, which no longer runs."""

    ADD = "add"
    """The target does not exist upstream; the implementation is put there."""


class Target(NamedTuple):
    """A dotted place in a package: ``module`` is imported, ``path`` is looked up in it."""

    module: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Split ``"package.module:Class.attribute"``; anything else is an ``InvalidPatch``."""
        if not isinstance(text, str) or not _TARGET.fullmatch(text):
            raise InvalidPatch(
                f"{text!r} is not a target: write it as 'package.module:name' or 'package.module:Class.name'"
            )
        module, _, path = text.partition(":")
        return cls(module, path)

    @property
    def name(self) -> str:
        """The last part of the path: the attribute itself."""
        return self.path.rpartition(".")[2]

    @property
    def owner(self) -> str:
        """The path of the class that holds the attribute, empty for a module-level name."""
        return self.path.rpartition(".")[0]

    @property
    def package(self) -> str:
        """The top-level package, whose version decides whether a patch is needed."""
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.module}:{self.path}"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One change to one attribute of an upstream package.

    ``implementation`` is a callable, or ``"package.module:name"`` which is imported when the patch is applied, so that
    declaring a patch imports nothing. A wrap is called as ``implementation(original, *args, **kwargs)``: for a method
    ``args[0]`` is the instance, for a class method the class; for a property ``original`` is its getter; for a static
    method and a function there is no extra argument.

    ``releases`` is a PEP 440 specifier of the upstream releases that have the target ("" = all of them).

    The contract with upstream, compared before the patch is applied: a *wrap* depends on the call convention, on the
    parameters named in ``reads`` and on the functions named in ``calls`` being called in the original's body; a
    *replace* depends on the whole signature and the whole body; an *add* on the target's absence. ``aliases`` are the
    places (``"package.module:name"``) that hold a copy of a module-level target through ``from ... import``.

    ``why``, ``how``, ``upstream`` (link, or why there is none) and ``remove_when`` are the documentation; the first
    line of ``why`` is the patch's row in the generated table.
    """

    id: str
    target: str
    kind: Kind
    implementation: Callable[..., Any] | str | Any
    why: str
    how: str
    upstream: str
    remove_when: str
    releases: str = ""
    reads: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    default: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise InvalidPatch(f"patch id {self.id!r}: use lower-case words joined by '.', '_' or '-'")
        try:
            object.__setattr__(self, "kind", Kind(self.kind))
        except ValueError:
            raise InvalidPatch(f"patch {self.id}: kind {self.kind!r} is none of {', '.join(Kind)}") from None
        Target.parse(self.target)
        for alias in self.aliases:
            Target.parse(alias)
        if isinstance(self.implementation, str):
            Target.parse(self.implementation)
        for field in ("reads", "calls", "aliases"):
            value = getattr(self, field)
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise InvalidPatch(f"patch {self.id}: {field} must be a tuple of strings, not {value!r}")
        for field in ("why", "how", "upstream", "remove_when"):
            if not getattr(self, field).strip():
                raise InvalidPatch(f"patch {self.id}: {field} is empty; say it, or say why there is nothing to say")

    @property
    def place(self) -> Target:
        """The parsed target."""
        return Target.parse(self.target)

    @property
    def summary(self) -> str:
        """The first line of ``why``."""
        return self.why.strip().splitlines()[0]
