# SPDX-License-Identifier: Apache-2.0
"""Apply and revert are inverse for any class hierarchy, any selection of patches and any order of operations."""

import types
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_ascend_patch.patching import PatchSet, State

from .declare import patch, tagged

MODULE = "generated_upstream"
NAMES = ("alpha", "beta", "gamma")
KINDS = ("function", "static", "of_class", "property", "nothing")


def member(kind: str, label: str) -> Any:
    """A class attribute of a kind; what it returns names where it was defined."""
    if kind == "static":
        return staticmethod(lambda: label)
    if kind == "of_class":
        return classmethod(lambda cls: (cls.__name__, label))
    if kind == "property":
        return property(lambda self: label)
    return lambda self: label


@st.composite
def hierarchies(draw: Any) -> dict[str, type]:
    """Up to five classes, each with up to two bases among the earlier ones, and members of any kind."""
    classes: dict[str, type] = {}
    for number in range(draw(st.integers(1, 5))):
        bases = draw(st.lists(st.sampled_from(list(classes)), max_size=2, unique=True)) if classes else []
        body = {}
        for name in NAMES:
            kind = draw(st.sampled_from(KINDS))
            if kind != "nothing":
                body[name] = member(kind, f"C{number}.{name}")
        try:
            made = type(f"C{number}", tuple(classes[base] for base in bases), {"__module__": MODULE, **body})
        except TypeError:  # the bases have no consistent order
            made = type(f"C{number}", (), {"__module__": MODULE, **body})
        classes[made.__name__] = made
    return classes


def present(classes: dict[str, type]) -> list[str]:
    """Every target that exists, inherited ones included."""
    return [f"{cls}.{name}" for cls in classes for name in NAMES if hasattr(classes[cls], name)]


def snapshot(classes: dict[str, type]) -> dict[str, dict[str, Any]]:
    """The raw contents of every class."""
    return {name: dict(vars(cls)) for name, cls in classes.items()}


def same(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> bool:
    """Whether every class holds the same names and, under each, the same object."""
    return all(
        list(before[cls]) == list(after[cls]) and all(before[cls][name] is after[cls][name] for name in before[cls])
        for cls in before
    )


def results(classes: dict[str, type]) -> dict[str, Any]:
    """What using every target gives."""
    found = {}
    for target in present(classes):
        cls, name = target.split(".")
        value = getattr(classes[cls](), name)
        found[target] = value() if callable(value) else value
    return found


def patch_set(classes: dict[str, type], targets: list[str]) -> PatchSet:
    """A set that tags the targets of a module made of these classes, and the module in ``sys.modules``."""
    import sys

    module = types.ModuleType(MODULE)
    vars(module).update(classes)
    sys.modules[MODULE] = module
    return PatchSet([patch(f"{MODULE}:{target}", tagged, id=target.lower()) for target in targets])


SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@SETTINGS
@given(hierarchies(), st.data())
def test_revert_restores_every_raw_attribute(classes: dict[str, type], data: Any) -> None:
    targets = data.draw(st.lists(st.sampled_from(present(classes)), unique=True)) if present(classes) else []
    before, used = snapshot(classes), results(classes)
    patches = patch_set(classes, targets)
    patches.apply()
    assert all(row.state is State.APPLIED for row in patches.status())
    patches.revert()
    assert same(before, snapshot(classes))
    assert results(classes) == used


@SETTINGS
@given(hierarchies(), st.data())
def test_a_patch_changes_its_target_and_what_inherits_it_and_nothing_else(classes: dict[str, type], data: Any) -> None:
    if not present(classes):
        return
    target = data.draw(st.sampled_from(present(classes)))
    owner, name = target.split(".")
    before = results(classes)
    definition = {
        cls: next(base for base in made.__mro__ if name in vars(base))
        for cls, made in classes.items()
        if hasattr(made, name)
    }
    patches = patch_set(classes, [target])
    patches.apply()
    after = results(classes)
    for other, value in before.items():
        cls, attribute = other.split(".")
        order = classes[cls].__mro__
        hit = (
            attribute == name
            and classes[owner] in order
            and (definition[cls] is classes[owner] or order.index(classes[owner]) < order.index(definition[cls]))
        )
        assert after[other] == (("patched", value) if hit else value)
    patches.revert()


@SETTINGS
@given(hierarchies(), st.data())
def test_any_sequence_of_operations_ends_where_its_last_state_says(classes: dict[str, type], data: Any) -> None:
    targets = (
        data.draw(st.lists(st.sampled_from(present(classes)), unique=True, max_size=4)) if present(classes) else []
    )
    before = snapshot(classes)
    patches = patch_set(classes, targets)
    ids = [target.lower() for target in targets]
    on: set[str] = set()
    operations = st.sampled_from(("apply", "revert", "arm"))
    for operation in data.draw(st.lists(operations, max_size=8)):
        chosen = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
        if operation == "arm":
            patches.arm()
            on = set(ids)
        elif operation == "apply":
            patches.apply(*chosen)
            on |= set(chosen or ids)
        else:
            patches.revert(*chosen)
            on -= set(chosen or ids)
        assert {row.patch.id for row in patches.status() if row.state is State.APPLIED} == on
        for row in patches.status():
            owner, name = row.patch.place.path.split(".")
            raw = vars(classes[owner]).get(name)
            assert (raw is not before[owner].get(name)) == (row.patch.id in on)
    patches.revert()
    assert same(before, snapshot(classes))
