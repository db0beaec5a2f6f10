# SPDX-License-Identifier: Apache-2.0
"""The contract of a patch: compare what was recorded for a target with what is found. Pure functions of descriptions.

A wrap depends on the kind of the target, its decorators (they change how it is called), the parameters that it reads
(name, position, default) and the calls that it relies on; new parameters after these, and a changed body, are fine. A
replace pins the whole signature and the body. Both depend on there being no copies of the target that the declaration
does not know.
"""

import difflib

from . import normal
from .declaration import Kind, Patch
from .describe import Description
from .verdict import Finding, Verdict


def _name(parameter: str) -> str:
    return parameter.partition("=")[0]


def _shown(parameters: tuple[str, ...]) -> str:
    return f"({', '.join(parameters)})"


def _positions(parameters: tuple[str, ...]) -> dict[str, tuple[str, int | str, str]]:
    """Name of each parameter -> (kind, position, text). Keyword-only parameters have no position."""
    places: dict[str, tuple[str, int | str, str]] = {}
    slash = parameters.index("/") if "/" in parameters else -1
    keyword_only = False
    position = 0
    for index, text in enumerate(parameters):
        if text == "/":
            continue
        if text.startswith("**"):
            places[text] = ("extra keywords", "", text)
        elif text.startswith("*"):
            keyword_only = True
            places[text] = ("extra positions", "", text)
        elif keyword_only:
            places[_name(text)] = ("keyword-only", "", text)
        else:
            places[_name(text)] = ("positional-only" if index < slash else "positional", position, text)
            position += 1
    return places


def _reads(patch: Patch, recorded: Description, found: Description) -> list[str]:
    before, now = _positions(recorded.parameters), _positions(found.parameters)
    changes = []
    for name in patch.reads:
        if name not in now:
            changes.append(f"parameter {name!r} is gone; the signature is now {_shown(found.parameters)}")
        elif name in before and before[name] != now[name]:
            (old_kind, old_place, old_text), (kind, place, text) = before[name], now[name]
            if old_kind != kind:
                changes.append(f"parameter {name!r} was {old_kind} and is {kind}")
            elif old_place != place:
                changes.append(
                    f"parameter {name!r} moved from position {old_place} to {place}; the signature is now "
                    f"{_shown(found.parameters)}"
                )
            else:
                changes.append(f"parameter {old_text!r} is now {text!r}")
    return changes


def _signature(recorded: Description, found: Description) -> list[str]:
    if recorded.parameters == found.parameters:
        return []
    return [f"the signature was {_shown(recorded.parameters)} and is {_shown(found.parameters)}"]


def compare(patch: Patch, recorded: Description | None, found: Description, release: str | None = None) -> Verdict:
    """The verdict on one patch. ``recorded`` is None when the release it is compared with has no record of the
    target."""
    if patch.kind is Kind.ADD:
        if found.present:
            return Verdict(
                Finding.GONE, release, (f"{patch.target} exists by now: a {found.kind}, which must not be overwritten",)
            )
        return Verdict(Finding.FITS, release)
    if not found.present:
        return Verdict(Finding.GONE, release, (found.reason,))
    if recorded is None or not recorded.present:
        reason = "the target is not recorded" if recorded is None else "the record says that there is no such target"
        return Verdict(Finding.UNKNOWN, release, (reason,))
    changes: list[str] = []
    if recorded.kind != found.kind:
        changes.append(f"it was a {recorded.kind} and is a {found.kind}")
    if recorded.place != found.place:
        changes.append(f"it is defined elsewhere: {found.place or 'in place'}, was {recorded.place or 'in place'}")
    if recorded.decorators != found.decorators:
        changes.append(f"its decorators were {list(recorded.decorators)} and are {list(found.decorators)}")
    if patch.kind is Kind.WRAP:
        changes += _reads(patch, recorded, found)
        changes += [f"it no longer calls {name}" for name in patch.calls if name not in found.calls]
    else:
        changes += _signature(recorded, found)
        if recorded.body != found.body:
            changes.append(f"its body changed (fingerprint {recorded.body}, now {found.body})")
    unknown = [alias for alias in found.aliases if alias not in patch.aliases]
    if unknown:
        changes.append(f"copies that the patch does not know: {', '.join(unknown)}")
    if changes:
        return Verdict(Finding.DRIFTED, release, tuple(changes))
    notes: tuple[str, ...] = ()
    if patch.kind is Kind.WRAP and recorded.body != found.body:
        notes = ("its body changed, on which a wrap does not depend",)
    return Verdict(Finding.FITS, release, notes)


def diff(target: str, before: Description, now: Description, names: tuple[str, str]) -> str:
    """A unified diff of the normal forms; empty when they are equal or one has no source."""
    texts = [
        normal.render(side.node).splitlines(keepends=True) if side.node is not None else [] for side in (before, now)
    ]
    return "".join(difflib.unified_diff(texts[0], texts[1], f"{names[0]}/{target}", f"{names[1]}/{target}"))
