# SPDX-License-Identifier: Apache-2.0
"""Put one patch in place and take it out again: raw descriptors, aliases, undo. Decides nothing about whether to.

What is installed is a plain function made with ``functools.wraps``, inside the same descriptor (static method, class
method, property) as the original. ``torch.compile`` traces it, and ``pickle`` finds it under the target's own name.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from .declaration import Kind, Patch, Target
from .errors import InvalidPatch, PatchConflict, TargetMissing

MISSING: Any = type("_Missing", (), {"__repr__": lambda self: "<missing>"})()
MARK = "__patch_id__"


def resolve_owner(target: Target, module: ModuleType) -> Any:
    """The module or class whose attribute the target is. Raises ``TargetMissing``."""
    owner: Any = module
    walked = target.module
    for part in target.owner.split(".") if target.owner else ():
        raw = inspect.getattr_static(owner, part, MISSING)
        if raw is MISSING:
            raise TargetMissing(f"{walked} has no attribute {part!r} (wanted: {target})")
        owner = getattr(owner, part)
        walked = f"{walked}.{part}"
    if target.owner and not inspect.isclass(owner):
        raise TargetMissing(f"{walked} is not a class but {type(owner).__name__} (wanted: {target})")
    return owner


def own_attribute(owner: Any, name: str) -> Any:
    """The raw object in the owner's own ``__dict__``, or ``MISSING``. A descriptor is returned as it is."""
    return vars(owner).get(name, MISSING)


def raw_attribute(owner: Any, name: str) -> Any:
    """The raw object that look-up finds, in the owner or, for a class, in its bases; or ``MISSING``."""
    if inspect.isclass(owner):
        for base in owner.__mro__:
            if name in vars(base):
                return vars(base)[name]
        return MISSING
    return own_attribute(owner, name)


def underlying(raw: Any) -> Any:
    """The function inside a static method, class method, property or cached property; anything else is returned."""
    if isinstance(raw, staticmethod | classmethod):
        return raw.__func__
    if isinstance(raw, property):
        return raw.fget
    if isinstance(raw, functools.cached_property):
        return raw.func
    return raw


def resolve_implementation(patch: Patch) -> Any:
    """The implementation itself, importing its module when it was given as a dotted name. Raises
    ``InvalidPatch``."""
    if not isinstance(patch.implementation, str):
        return patch.implementation
    place = Target.parse(patch.implementation)
    try:
        found: Any = importlib.import_module(place.module)
        for part in place.path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidPatch(
            f"patch {patch.id}: cannot load its implementation {patch.implementation!r}: {error}"
        ) from error
    return found


def _call_through(patch: Patch, call: Callable[..., Any], original: Any) -> FunctionType:
    """A plain function like ``original`` (coroutine and generator functions stay such) that runs ``call``."""
    if inspect.isasyncgenfunction(original):
        raise InvalidPatch(
            f"patch {patch.id}: {patch.target} is an asynchronous generator, which cannot be wrapped faithfully"
        )
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def installed(*args: Any, **kwargs: Any) -> Any:
            return await call(*args, **kwargs)

    elif inspect.isgeneratorfunction(original):

        @functools.wraps(original)
        def installed(*args: Any, **kwargs: Any) -> Any:
            return (yield from call(*args, **kwargs))

    else:

        @functools.wraps(original)
        def installed(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

    return installed  # type: ignore[return-value]


def _wrapper(patch: Patch, implementation: Any, original: Any) -> FunctionType:
    """As above for a wrap; the common case passes the original without a ``functools.partial`` in between (call
    overhead)."""
    if (
        inspect.iscoroutinefunction(original)
        or inspect.isgeneratorfunction(original)
        or inspect.isasyncgenfunction(original)
    ):
        return _call_through(patch, functools.partial(implementation, original), original)

    @functools.wraps(original)
    def installed(*args: Any, **kwargs: Any) -> Any:
        return implementation(original, *args, **kwargs)

    return installed  # type: ignore[return-value]


def _name_after(function: Any, patch: Patch) -> None:
    """Name the function after its target, so that pickle finds it there, and mark it as ours."""
    place = patch.place
    function.__module__ = place.module
    function.__qualname__ = place.path
    function.__name__ = place.name
    setattr(function, MARK, patch.id)


def build(patch: Patch, implementation: Any, raw: Any) -> Any:
    """The object to put in the owner's ``__dict__`` in the place of ``raw``."""
    if patch.kind is Kind.ADD:
        return implementation
    original = underlying(raw)
    if not callable(original) or inspect.isclass(original):
        if patch.kind is Kind.WRAP:
            what = "a class" if inspect.isclass(original) else f"a {type(original).__name__}"
            raise InvalidPatch(
                f"patch {patch.id}: {patch.target} is {what}; only functions, methods and properties can be wrapped"
            )
        return implementation
    if isinstance(implementation, staticmethod | classmethod | property) or inspect.isclass(implementation):
        return implementation
    if not callable(implementation):
        if patch.kind is Kind.WRAP:
            raise InvalidPatch(
                f"patch {patch.id}: the implementation of a wrap must be callable, not {implementation!r}"
            )
        return implementation
    function = (
        _wrapper(patch, implementation, original)
        if patch.kind is Kind.WRAP
        else _call_through(patch, implementation, original)
    )
    _name_after(function, patch)
    for extra in ("cache_clear", "cache_info", "cache_parameters"):  # functools.lru_cache keeps these outside __dict__
        if hasattr(original, extra) and not hasattr(function, extra):
            setattr(function, extra, getattr(original, extra))
    if isinstance(raw, staticmethod):
        return staticmethod(function)
    if isinstance(raw, classmethod):
        return classmethod(function)
    if isinstance(raw, property):
        return property(function, raw.fset, raw.fdel, raw.__doc__)
    if isinstance(raw, functools.cached_property):
        cached = functools.cached_property(function)
        cached.__set_name__(None, patch.place.name)  # type: ignore[arg-type]  # setattr does not call it
        return cached
    return function


def _inherited(patch: Patch, owner: type, raw: Any) -> Any:
    """A stand-in for an inherited descriptor that looks its function up in the bases at each call, as inheritance does.

    Whoever patches or restores the base later is honoured. Properties and values are taken as they are.
    """
    if not isinstance(raw, FunctionType | staticmethod | classmethod):
        return raw
    name = patch.place.name

    def look_up(*args: Any, **kwargs: Any) -> Any:
        for base in owner.__mro__[1:]:
            if name in vars(base):
                return underlying(vars(base)[name])(*args, **kwargs)
        raise AttributeError(f"{owner.__qualname__} no longer inherits {name!r}")

    original = _call_through(patch, look_up, underlying(raw))
    original.__dict__.pop(MARK, None)
    return original if isinstance(raw, FunctionType) else type(raw)(original)


class Installed:
    """One applied patch: what was there (``inherited``: in a base), what is there, and where else it was put."""

    def __init__(self, patch: Patch, owner: Any, raw: Any, inherited: bool, new: Any) -> None:
        self.patch = patch
        self.owner = owner
        self.raw = raw
        self.inherited = inherited
        self.object = new
        self.rebound: list[tuple[Any, str]] = []

    @property
    def original(self) -> Any:
        """What a wrap receives as ``original``; ``MISSING`` for an addition."""
        return self.raw if self.raw is MISSING else underlying(self.raw)

    def in_place(self) -> bool:
        """Whether the target still holds what was installed, possibly below somebody else's wrapper."""
        current = own_attribute(self.owner, self.patch.place.name)
        mine = underlying(self.object)
        seen = 0
        current = underlying(current)
        while current is not MISSING and seen < 32:
            if current is mine:
                return True
            current = getattr(current, "__wrapped__", MISSING)
            seen += 1
        return False


def _put(owner: Any, name: str, value: Any) -> None:
    if value is MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def install(patch: Patch, implementation: Any, module: ModuleType) -> Installed:
    """Apply one patch to a complete module, aliases included. On any error everything it did is undone."""
    place = patch.place
    owner = resolve_owner(place, module)
    own = own_attribute(owner, place.name)
    raw = raw_attribute(owner, place.name)
    if patch.kind is Kind.ADD:
        if raw is not MISSING:
            raise PatchConflict(f"patch {patch.id} adds {place}, but it is there already: {raw!r}")
    elif raw is MISSING:
        raise TargetMissing(f"patch {patch.id}: {place} does not exist")
    elif own is not MISSING and getattr(underlying(own), MARK, None) is not None:
        raise PatchConflict(f"patch {patch.id}: {place} is patched already, by {getattr(underlying(raw), MARK)}")
    new = build(patch, implementation, raw if own is not MISSING else _inherited(patch, owner, raw))
    done = Installed(patch, owner, raw, own is MISSING, new)
    setattr(owner, place.name, new)
    try:
        if patch.kind is not Kind.ADD:
            for alias in patch.aliases:
                _rebind(done, Target.parse(alias), raw, new)
    except BaseException:
        uninstall(done)
        raise
    return done


def _rebind(done: Installed, alias: Target, old: Any, new: Any) -> None:
    """Point a ``from ... import`` copy at the new object if, and only if, it is the very object that was replaced."""
    holder = sys.modules.get(alias.module)
    if holder is None:
        return  # not imported yet: it will find the new object
    try:
        owner = resolve_owner(alias, holder)
    except TargetMissing:
        return  # an alias of other releases, or of a module that is still executing
    if own_attribute(owner, alias.name) is old:
        setattr(owner, alias.name, new)
        done.rebound.append((owner, alias.name))


def uninstall(done: Installed) -> None:
    """Restore the raw object, the aliases that were rebound, and the copies that modules imported since.

    Raises ``PatchConflict``, having changed nothing, when somebody else has replaced the target meanwhile.
    """
    name = done.patch.place.name
    if own_attribute(done.owner, name) is not done.object:
        raise PatchConflict(
            f"patch {done.patch.id}: {done.patch.target} no longer holds what was installed there (somebody patched it "
            "again); revert that first"
        )
    _put(done.owner, name, MISSING if done.inherited else done.raw)
    if done.raw is MISSING:
        return
    for owner, alias in done.rebound:
        if own_attribute(owner, alias) is done.object:
            setattr(owner, alias, done.raw)
    done.rebound.clear()
    # Only what has an identity of its own: every 4 in the process is the same object.
    unique = isinstance(done.object, FunctionType) or inspect.isclass(done.object)
    if unique and done.owner is sys.modules.get(done.patch.place.module):
        for holder, alias in holders(done.object):
            if holder.__name__ != _home(done.patch):
                setattr(holder, alias, done.raw)


def _home(patch: Patch) -> str | None:
    """The module that defines the implementation; its own name for it is no copy of the target."""
    if isinstance(patch.implementation, str):
        return Target.parse(patch.implementation).module
    return getattr(patch.implementation, "__module__", None)


def holders(value: Any) -> list[tuple[ModuleType, str]]:
    """Every module-level name in the process that is this very object."""
    return [
        (module, name)
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType)
        for name, held in list(vars(module).items())
        if held is value
    ]
