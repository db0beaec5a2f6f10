# SPDX-License-Identifier: Apache-2.0
"""The life cycle of a set of patches: arm, apply, revert, report. How one patch is installed and what is compared live
elsewhere.

State of each patch, and what leads there::

    idle --arm--> armed --target complete--> applied --revert--> idle
                    |                         (armed again by the next arm)
                    +--> disabled | not needed | refused | failed

A patch that was asked for and cannot be applied raises where the target is imported, and again from
``PatchSet.raise_failures``, because importers are known to swallow exceptions.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from .declaration import Patch, Target
from .errors import InvalidPatch, PatchConflict, PatchError, PatchRefused, TargetMissing, UnknownPatch
from .hooks import Hook, is_complete, when_complete
from .install import (
    MISSING,
    Installed,
    install,
    raw_attribute,
    resolve_implementation,
    resolve_owner,
    underlying,
    uninstall,
)
from .verdict import Finding, Verdict
from .words import Words

logger = logging.getLogger(__name__)


class State(Words):
    """Where a patch stands."""

    IDLE = "idle"
    ARMED = "armed"
    APPLIED = "applied"
    NOT_NEEDED = "not needed"
    DISABLED = "disabled"
    REFUSED = "refused"
    FAILED = "failed"


class PatchStatus(NamedTuple):
    """One row of the report. ``aliases`` are the places that were rebound; ``release`` is the upstream release found,
    if known."""

    patch: Patch
    state: State
    reason: str = ""
    aliases: tuple[str, ...] = ()
    release: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data."""
        return {
            "id": self.patch.id,
            "target": self.patch.target,
            "kind": str(self.patch.kind),
            "releases": self.patch.releases,
            "state": str(self.state),
            "reason": self.reason,
            "aliases": list(self.aliases),
            "release": self.release,
        }


class _Entry:
    """What the set knows about one patch."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.state = State.IDLE
        self.reason = ""
        self.release: str | None = None
        self.installed: Installed | None = None
        self.hook: Hook | None = None
        self.error: PatchError | None = None

    def unhook(self) -> None:
        if self.hook is not None:
            self.hook.cancel()
            self.hook = None


def accept(patch: Patch) -> Verdict:
    """The examination that finds no fault; for sets that have no record of their upstream."""
    return Verdict(Finding.FITS)


def state_of(verdict: Verdict, strict: str) -> State:
    """What a verdict makes of a wanted patch under ``strict`` (see ``PatchSet``): NOT_NEEDED, REFUSED, or ARMED to be
    applied."""
    if verdict.finding is Finding.NOT_NEEDED:
        return State.NOT_NEEDED
    return State.REFUSED if verdict.refuses and strict == "error" else State.ARMED


class PatchSet:
    """Patches that are armed, applied and reverted together.

    Args:
        patches: The declarations. Ids are unique.
        examine: Compares a patch with the installed upstream. Called once the target's module is complete, without a
            lock held.
        strict: ``"error"`` refuses what ``examine`` objects to, ``"warn"`` applies it all the same with a warning,
            ``"off"`` does not ask. A callable is asked each time.
        enabled: Whether a patch is wanted; the reason when it is not.
    """

    def __init__(
        self,
        patches: Iterable[Patch],
        *,
        examine: Callable[[Patch], Verdict] = accept,
        strict: str | Callable[[], str] = "error",
        enabled: Callable[[Patch], str | None] = lambda patch: None,
    ) -> None:
        self._entries: dict[str, _Entry] = {}
        self._examine = examine
        self._strict = strict
        self._enabled = enabled
        self._lock = threading.RLock()
        self.armed = False
        for patch in patches:
            if patch.id in self._entries:
                raise InvalidPatch(f"two patches have the id {patch.id!r}")
            self._entries[patch.id] = _Entry(patch)

    # arming

    def arm(self) -> None:
        """Apply what is loaded, and register hooks for the rest. Idempotent. Raises the first refusal or failure, after
        trying all."""
        self.armed = True
        self._start(self._select(()))

    def _start(self, entries: list[_Entry]) -> None:
        errors: list[PatchError] = []
        for entry in entries:
            disabled = self._enabled(entry.patch)
            if disabled is not None:
                entry.state, entry.reason = State.DISABLED, disabled
                continue
            if entry.installed is not None:
                if self._still_in_place(entry):
                    continue
                entry.installed = None  # the module was reloaded
            elif entry.state in (State.ARMED, State.NOT_NEEDED):
                continue  # what the installed release does not need, it will not need later either
            entry.unhook()
            entry.state, entry.reason, entry.error = State.ARMED, f"waiting for {entry.patch.place.module}", None
            try:
                entry.hook = when_complete(entry.patch.place.module, partial(self._settle, entry))
            except PatchError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def disarm(self) -> None:
        """Cancel every hook that is still waiting. What is applied stays (``revert`` undoes it)."""
        self.armed = False
        for entry in self._entries.values():
            entry.unhook()
            if entry.state is State.ARMED:
                entry.state, entry.reason = State.IDLE, ""

    def _settle(self, entry: _Entry, module: ModuleType) -> None:
        """Bring one patch to its final state now that its module is complete; remember and raise what goes wrong."""
        patch = entry.patch
        try:
            if not self._wanted(entry):
                return
            implementation = resolve_implementation(patch)
            with self._lock:
                if entry.installed is not None and entry.installed.in_place():
                    return
                entry.installed = install(patch, implementation, module)
                entry.state, entry.error = State.APPLIED, None
            logger.debug("applied %s (%s %s)", patch.id, patch.kind, patch.target)
        except PatchError as error:
            if entry.state is not State.REFUSED:
                entry.state, entry.reason = State.FAILED, str(error)
            entry.error = error
            raise
        except Exception as error:
            entry.state, entry.reason = State.FAILED, f"{type(error).__name__}: {error}"
            entry.error = PatchError(f"patch {patch.id} ({patch.target}) failed: {entry.reason}")
            raise entry.error from error

    def _wanted(self, entry: _Entry) -> bool:
        """Ask the examination; true when the patch is to be applied. Raises ``PatchRefused``."""
        strict = self._strict if isinstance(self._strict, str) else self._strict()
        verdict = self._examine(entry.patch)
        entry.release, entry.reason = verdict.release, verdict.line
        state = state_of(verdict, strict)
        if state is State.NOT_NEEDED:
            entry.state, entry.error = state, None
            return False
        if state is State.REFUSED:
            entry.state = state
            raise PatchRefused(verdict.line)
        if verdict.refuses and strict == "warn":
            logger.warning("%s (applied all the same)", verdict.line)
        return True

    def take(self, module: ModuleType) -> None:
        """Apply at once the wanted patches of a module that hands itself over as its last statement. Idempotent."""
        for entry in self._entries.values():
            if entry.patch.place.module != module.__name__ or entry.state in (State.APPLIED, State.DISABLED):
                continue
            disabled = self._enabled(entry.patch)
            if disabled is not None:
                entry.state, entry.reason = State.DISABLED, disabled
            else:
                self._settle(entry, module)

    def foresee(self) -> None:
        """Examine the patches whose modules have not arrived yet, and record refusals before an import meets them."""
        strict = self._strict if isinstance(self._strict, str) else self._strict()
        for entry in self._entries.values():
            if entry.state is not State.ARMED:
                continue
            verdict = self._examine(entry.patch)
            state = state_of(verdict, strict)
            if state is State.ARMED:
                continue
            entry.state, entry.reason, entry.release = state, verdict.line, verdict.release
            if state is State.NOT_NEEDED:
                entry.unhook()
            else:
                entry.error = PatchRefused(verdict.line)

    # applying and reverting

    def apply(self, *ids: str) -> None:
        """Apply the given patches (all enabled ones by default) whose modules are loaded, arm the others. Idempotent.

        A target that was reloaded since is patched again. Raises the first refusal or failure, after trying all of
        them.
        """
        self._start(self._select(ids))

    @staticmethod
    def _still_in_place(entry: _Entry) -> bool:
        assert entry.installed is not None
        module = sys.modules.get(entry.patch.place.module)
        if module is None:
            return True  # unloaded: the next import is a new module and has its own hook
        try:
            return resolve_owner(entry.patch.place, module) is entry.installed.owner and entry.installed.in_place()
        except TargetMissing:
            return False

    def revert(self, *ids: str) -> None:
        """Take the given patches (all by default) out again, last applied first, and stop waiting for the others.
        Idempotent.

        Raises ``PatchConflict`` for a target that somebody else has patched on top, after reverting the others.
        """
        errors: list[PatchError] = []
        for entry in reversed(self._select(ids)):
            entry.unhook()
            try:
                with self._lock:
                    if entry.installed is not None:
                        uninstall(entry.installed)
                        entry.installed = None
                    entry.state, entry.reason, entry.error = State.IDLE, "", None
            except PatchConflict as error:
                entry.reason = str(error)
                errors.append(error)
        if not ids:
            self.armed = False
        if errors:
            raise errors[0]

    def _select(self, ids: tuple[str, ...]) -> list[_Entry]:
        for patch_id in ids:
            if patch_id not in self._entries:
                raise UnknownPatch(f"no patch {patch_id!r}; the patches are: {', '.join(self._entries) or '(none)'}")
        return [entry for entry in self._entries.values() if not ids or entry.patch.id in ids]

    # reporting

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The declarations, in order."""
        return tuple(entry.patch for entry in self._entries.values())

    def status(self) -> tuple[PatchStatus, ...]:
        """One row per patch, in order of declaration."""
        return tuple(
            PatchStatus(
                entry.patch,
                entry.state,
                entry.reason,
                tuple(f"{getattr(owner, '__name__', owner)}:{name}" for owner, name in entry.installed.rebound)
                if entry.installed is not None
                else (),
                entry.release,
            )
            for entry in self._entries.values()
        )

    def raise_failures(self) -> None:
        """Raise the first failure or refusal on record, with the others in its text. Nothing ends in silence."""
        failures = [entry.error for entry in self._entries.values() if entry.error is not None]
        if not failures:
            return
        if len(failures) == 1:
            raise failures[0]
        raise type(failures[0])("\n".join(str(error) for error in failures)) from failures[0]

    def get_original(self, target: str) -> Any:
        """The function that ``target`` was before it was patched, or is, when it is not. Raises for an unknown target.

        Static and class methods and properties give the function inside them, as a wrap receives it.
        """
        place = Target.parse(target)
        for entry in self._entries.values():
            if entry.patch.target == target and entry.installed is not None:
                if entry.installed.original is MISSING:
                    raise TargetMissing(f"{target} was added by patch {entry.patch.id}; it has no original")
                return entry.installed.original
        module = sys.modules.get(place.module)
        if module is None or not is_complete(module):
            raise TargetMissing(f"{target}: module {place.module} is not loaded")
        raw = raw_attribute(resolve_owner(place, module), place.name)
        if raw is MISSING:
            raise TargetMissing(f"{target} does not exist")
        return underlying(raw)
