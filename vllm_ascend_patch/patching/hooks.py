# SPDX-License-Identifier: Apache-2.0
"""Call back when a module is complete: wrapt's post-import hooks, plus the two cases that they do not cover.

wrapt fires at once for a module that is in ``sys.modules`` but still executing, and it forgets a hook that raised, so
that a second import of the module succeeds without it. Here the first case waits until the module is complete, and a
hook that raised is registered again: the second import fails like the first. Nothing here knows what a patch is.

wrapt itself is imported with the first watched package, not before: its import takes longer than all the rest of arming, and
a process that never gets to the package needs none of it.
"""

import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Callback = Callable[[ModuleType], None]

_registering = threading.local()


def is_complete(module: ModuleType) -> bool:
    """Whether the import system has finished executing the module (true for modules that it did not import)."""
    return not getattr(getattr(module, "__spec__", None), "_initializing", False)


class _WatchedSpec(ModuleSpec):
    """The spec of a module that is being executed; reports the moment at which the import system calls it complete.

    ``importlib`` clears ``spec._initializing`` as its last act, and every reader goes through the attribute, so a
    property in its place sees exactly that moment. Once it has fired, the spec gets its own class back.
    """

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing", False))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if value:
            return
        watchers: list[Callback] = self.__dict__.pop("_watchers", [])
        self.__class__ = self.__dict__.pop("_plain_class", ModuleSpec)
        module = sys.modules.get(self.name)
        if module is None or module.__spec__ is not self:
            # The execution failed; a later import is a new module, so wait for that one.
            for watcher in watchers:
                when_complete(self.name, watcher)
            return
        for watcher in watchers:
            watcher(module)


def _watch(spec: ModuleSpec, callback: Callback) -> None:
    if not isinstance(spec, _WatchedSpec):
        spec.__dict__["_plain_class"] = type(spec)
        spec.__dict__["_watchers"] = []
        spec.__class__ = _WatchedSpec
    spec.__dict__["_watchers"].append(callback)
    if not spec.__dict__["_initializing"]:  # another thread finished the import meanwhile
        spec._initializing = False  # type: ignore[attr-defined]


class _Trigger:
    """A meta path finder that hands the hooks of a package to wrapt when the package is about to be imported."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Hook]] = {}
        self._lock = threading.Lock()

    def add(self, package: str, hook: "Hook") -> bool:
        """Keep a hook until ``package`` is looked up; false when that has happened."""
        with self._lock:
            if package in sys.modules:
                return False
            if self not in sys.meta_path:
                sys.meta_path.insert(0, self)
            self._waiting.setdefault(package, []).append(hook)
            return True

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Part of the import protocol. Finds nothing by itself."""
        if fullname not in self._waiting:
            return None
        with self._lock:
            hooks = self._waiting.pop(fullname, [])
        for hook in hooks:
            hook.register()
        # wrapt has put its finder in front of this one, too late for the look-up that is going on: start that again.
        return importlib.util.find_spec(fullname)


_trigger = _Trigger()


class Hook:
    """A registered callback; ``cancel`` makes it do nothing (wrapt has no way to take a hook back)."""

    def __init__(self, name: str, callback: Callback) -> None:
        self.name = name
        self._callback: Callback | None = callback

    def cancel(self) -> None:
        """Never call back."""
        self._callback = None

    def _fire(self, module: ModuleType) -> None:
        if self._callback is not None:
            self._callback(module)

    def _imported(self, module: ModuleType) -> None:
        if getattr(_registering, "now", None) is self:
            # wrapt found the module loaded after we had found it missing: another thread is importing it.
            self._dispatch(module)
            return
        try:
            self._fire(module)
        except BaseException:
            self._register_again(module)
            raise

    def _register_again(self, module: ModuleType) -> None:
        # wrapt queues a hook only for a module that is not loaded; the import that is failing now unloads it anyway.
        sys.modules.pop(self.name, None)
        try:
            self.register()
        finally:
            sys.modules[self.name] = module

    def _dispatch(self, module: ModuleType) -> None:
        spec: Any = getattr(module, "__spec__", None)
        if is_complete(module):
            self._fire(module)
        else:
            _watch(spec, self._fire)

    def start(self) -> None:
        """Fire now, or see to it that the module's import does."""
        module = sys.modules.get(self.name)
        if module is not None:
            self._dispatch(module)
        elif not _trigger.add(self.name.partition(".")[0], self):
            self.register()

    def register(self) -> None:
        """Queue with wrapt, whose finder calls back after the module's execution."""
        import wrapt

        _registering.now = self
        try:
            wrapt.register_post_import_hook(self._imported, self.name)
        finally:
            _registering.now = None


def when_complete(name: str, callback: Callback) -> Hook:
    """Call ``callback(module)`` once the module ``name`` is complete: now, when its running import ends, or when it is
    imported.

    An exception of the callback propagates to whoever imports the module, at every attempt.
    """
    hook = Hook(name, callback)
    hook.start()
    return hook
