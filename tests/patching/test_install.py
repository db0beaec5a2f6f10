# SPDX-License-Identifier: Apache-2.0
"""Every kind of attribute can be patched, works as what it was, and comes back as the very object that was there."""

import asyncio
import functools
import importlib
import inspect
import pickle
import sys
import types
from typing import Any

import pytest

from vllm_ascend_patch.patching import InvalidPatch, Kind, PatchConflict, PatchSet, State, TargetMissing, UnknownPatch

from .declare import patch, tagged

SOURCE = {
    "mod": """
        import contextlib
        import functools

        CONSTANT = 3

        def function(x, y=1):
            "The docstring."
            return x + y

        async def coroutine(x):
            return x

        def generator(n):
            yield from range(n)

        @contextlib.contextmanager
        def manager(x):
            yield x

        @functools.lru_cache
        def cached(x):
            return x

        async def stream():
            yield 1

        class Base:
            def method(self, x):
                return x

            @staticmethod
            def static(x):
                return x

            @classmethod
            def of_class(cls, x):
                return cls.__name__, x

            @property
            def value(self):
                return self._value

            @value.setter
            def value(self, new):
                self._value = new

            @functools.cached_property
            def once(self):
                return object()

            async def coroutine(self, x):
                return x

            class Inner:
                def deep(self):
                    return "deep"

        class Child(Base):
            pass
        """,
    "copies": "from PKG.mod import function\nfrom PKG.mod import function as other\n",
}


@pytest.fixture
def mod(upstream: Any) -> Any:
    """The module, loaded."""
    return importlib.import_module(f"{upstream(SOURCE)}.mod")


def applied(mod: Any, path: str, implementation: Any = tagged, kind: Kind = Kind.WRAP, **fields: Any) -> PatchSet:
    patches = PatchSet([patch(f"{mod.__name__}:{path}", implementation, kind, **fields)])
    patches.apply()
    assert patches.status()[0].state is State.APPLIED
    return patches


CALLS = [
    ("function", lambda mod: mod.function(1, y=2)),
    ("coroutine", lambda mod: asyncio.run(mod.coroutine(1))),
    ("Base.method", lambda mod: mod.Base().method(1)),
    ("Base.static", lambda mod: mod.Base.static(1)),
    ("Base.static", lambda mod: mod.Base().static(1)),
    ("Base.of_class", lambda mod: mod.Child.of_class(1)),
    ("Base.of_class", lambda mod: mod.Base().of_class(1)),
    ("Base.coroutine", lambda mod: asyncio.run(mod.Base().coroutine(1))),
    ("Base.Inner.deep", lambda mod: mod.Base.Inner().deep()),
    ("Base.method", lambda mod: mod.Child().method(1)),
    ("Child.method", lambda mod: mod.Child().method(1)),
    ("Child.static", lambda mod: mod.Child.static(1)),
    ("Child.of_class", lambda mod: mod.Child.of_class(1)),
    ("Child.coroutine", lambda mod: asyncio.run(mod.Child().coroutine(1))),
]


@pytest.mark.parametrize(("path", "call"), CALLS, ids=[f"{path}-{n}" for n, (path, _) in enumerate(CALLS)])
def test_a_wrap_gets_the_original_and_the_call_and_revert_undoes_it(mod: Any, path: str, call: Any) -> None:
    async def awaited(original: Any, *args: Any) -> Any:
        return "patched", await original(*args)

    before = call(mod)
    patches = applied(mod, path, awaited if path.endswith("coroutine") else tagged)
    assert call(mod) == ("patched", before)
    patches.revert()
    assert call(mod) == before


@pytest.mark.parametrize(
    "path",
    [
        "function",
        "Base.method",
        "Base.static",
        "Base.of_class",
        "Base.value",
        "Base.once",
        "Child.method",
        "Child.value",
    ],
)
def test_revert_restores_the_raw_descriptor_itself(mod: Any, path: str) -> None:
    owner: Any = mod
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    before = dict(vars(owner))
    patches = applied(mod, path)
    assert vars(owner)[path.split(".")[-1]] is not before.get(path.split(".")[-1])
    patches.revert()
    assert dict(vars(owner)) == before
    assert all(vars(owner)[name] is value for name, value in before.items())


def test_a_property_keeps_its_setter(mod: Any) -> None:
    applied(mod, "Base.value")
    instance = mod.Base()
    instance.value = 5
    assert instance.value == ("patched", 5)


def test_a_cached_property_still_caches(mod: Any) -> None:
    applied(mod, "Base.once")
    instance = mod.Base()
    assert instance.once is instance.once
    assert instance.once[0] == "patched"


def test_a_property_wrap_of_an_inherited_property_leaves_the_base_alone(mod: Any) -> None:
    applied(mod, "Child.value")
    base, child = mod.Base(), mod.Child()
    base.value = child.value = 1
    assert (base.value, child.value) == (1, ("patched", 1))


def test_a_wrap_of_an_inherited_method_follows_what_happens_to_the_base(mod: Any) -> None:
    name = mod.__name__
    patches = PatchSet(
        [
            patch(f"{name}:Base.method", lambda original, self, x: ("base", original(self, x)), id="base"),
            patch(f"{name}:Child.method", lambda original, self, x: ("child", original(self, x)), id="child"),
        ]
    )
    patches.apply()
    assert mod.Child().method(1) == ("child", ("base", 1))
    patches.revert("base")
    assert mod.Child().method(1) == ("child", 1)
    patches.revert()
    assert "method" not in vars(mod.Child)


def test_what_is_installed_is_a_plain_function_that_looks_like_the_original(mod: Any) -> None:
    applied(mod, "function")
    assert type(mod.function) is type(lambda: None)
    assert mod.function.__doc__ == "The docstring."
    assert str(inspect.signature(mod.function)) == "(x, y=1)"


def test_coroutine_and_generator_functions_stay_such(mod: Any) -> None:
    applied(mod, "coroutine")
    applied(mod, "generator", lambda original, n: original(n + 1))
    assert inspect.iscoroutinefunction(mod.coroutine)
    assert inspect.isgeneratorfunction(mod.generator)
    assert list(mod.generator(2)) == [0, 1, 2]


def test_a_context_manager_function_can_be_wrapped(mod: Any) -> None:
    applied(mod, "manager", lambda original, x: original(x * 2))
    with mod.manager(2) as value:
        assert value == 4


def test_a_cached_function_keeps_its_cache_controls(mod: Any) -> None:
    applied(mod, "cached")
    mod.cached(1)
    assert mod.cached.cache_info().misses == 1
    mod.cached.cache_clear()
    assert mod.cached.cache_info().misses == 0


@pytest.mark.parametrize(
    "path", ["function", "Base.method", "Base.static", "Child.method", "Base.Inner.deep", "coroutine"]
)
def test_what_is_installed_can_be_pickled(mod: Any, path: str) -> None:
    applied(mod, path)
    function = functools.reduce(getattr, path.split("."), mod)
    assert pickle.loads(pickle.dumps(function)) is function


def test_an_instance_whose_class_is_patched_and_its_bound_method_can_be_pickled(mod: Any) -> None:
    applied(mod, "Base.method")
    bound = pickle.loads(pickle.dumps(mod.Base().method))
    assert bound(1) == ("patched", 1)


@pytest.mark.parametrize("path", ["traced", "Model.helper"])
def test_torch_compile_runs_the_patch(upstream: Any, path: str) -> None:
    torch = pytest.importorskip("torch")
    source = """
        def traced(x):
            return x * 2

        class Model:
            def helper(self, x):
                return x * 2

            def top(self, x):
                return self.helper(x) + traced(x)
    """
    mod = importlib.import_module(f"{upstream({'mod': source})}.mod")
    model = mod.Model()
    applied(mod, path, lambda original, *args: original(*args) + 1000)
    compiled = torch.compile(model.top, backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == model.top(torch.ones(2)).tolist() == [1004.0, 1004.0]


def test_replace_runs_instead_and_keeps_the_descriptor(mod: Any) -> None:
    applied(mod, "Base.static", lambda x: -x, Kind.REPLACE)
    applied(mod, "Base.of_class", lambda cls, x: (cls, -x), Kind.REPLACE)
    assert mod.Base().static(2) == -2
    assert mod.Child.of_class(2) == (mod.Child, -2)


def test_replace_takes_values_and_classes_as_they_are(mod: Any) -> None:
    class Other(mod.Base):
        pass

    raw = mod.Base
    value = applied(mod, "CONSTANT", 4, Kind.REPLACE)
    cls = applied(mod, "Base", Other, Kind.REPLACE)
    assert (mod.CONSTANT, mod.Base) == (4, Other)
    value.revert()
    cls.revert()
    assert mod.CONSTANT == 3
    assert mod.Base is raw


def test_reverting_a_value_leaves_equal_values_elsewhere_alone(mod: Any) -> None:
    mod.OTHER = 4
    applied(mod, "CONSTANT", 4, Kind.REPLACE).revert()
    assert (mod.CONSTANT, mod.OTHER, inspect.CO_VARARGS) == (3, 4, 4)


def test_revert_leaves_the_implementation_where_it_was_written(mod: Any, upstream: Any) -> None:
    ours = upstream({"own": f"from {mod.__name__} import Base\nclass Mine(Base):\n    pass\n"})
    patches = applied(mod, "Base", f"{ours}.own:Mine", Kind.REPLACE)
    mine = mod.Base
    patches.revert()
    assert sys.modules[f"{ours}.own"].Mine is mine


def test_add_puts_something_there_and_takes_it_away(mod: Any) -> None:
    patches = applied(mod, "Base.extra", lambda self: "extra", Kind.ADD)
    assert mod.Child().extra() == "extra"
    with pytest.raises(TargetMissing, match="was added"):
        patches.get_original(f"{mod.__name__}:Base.extra")
    patches.revert()
    assert not hasattr(mod.Base, "extra")


def test_add_refuses_to_overwrite(mod: Any) -> None:
    with pytest.raises(PatchConflict, match="is there already"):
        applied(mod, "Child.method", lambda self: None, Kind.ADD)
    assert "method" not in vars(mod.Child)


@pytest.mark.parametrize("path", ["nothing", "Base.nothing", "Nothing.method", "function.attribute"])
def test_a_missing_target_is_named(mod: Any, path: str) -> None:
    with pytest.raises(TargetMissing, match=path.split(".")[-1] if path != "function.attribute" else "not a class"):
        applied(mod, path)


@pytest.mark.parametrize("path", ["Base", "CONSTANT"])
def test_only_functions_can_be_wrapped(mod: Any, path: str) -> None:
    with pytest.raises(InvalidPatch, match="only functions, methods and properties"):
        applied(mod, path)


def test_an_asynchronous_generator_is_refused(mod: Any) -> None:
    with pytest.raises(InvalidPatch, match="asynchronous generator"):
        applied(mod, "stream")


def test_an_implementation_that_cannot_be_imported_is_named_and_nothing_changes(mod: Any) -> None:
    before = mod.function
    with pytest.raises(InvalidPatch, match=r"no\.such\.module:x"):
        applied(mod, "function", "no.such.module:x")
    assert mod.function is before


def test_two_patches_of_one_target_conflict_and_the_first_stays(mod: Any) -> None:
    target = f"{mod.__name__}:function"
    patches = PatchSet([patch(target, tagged, id="one"), patch(target, tagged, id="two")])
    with pytest.raises(PatchConflict, match="patched already, by one"):
        patches.apply()
    assert [row.state for row in patches.status()] == [State.APPLIED, State.FAILED]
    assert mod.function(1) == ("patched", 2)


def test_revert_refuses_to_undo_what_somebody_else_put_on_top(mod: Any) -> None:
    patches = applied(mod, "function")
    ours = mod.function

    @functools.wraps(ours)
    def theirs(*args: Any) -> Any:
        return ours(*args)

    mod.function = theirs
    with pytest.raises(PatchConflict, match="somebody patched it again"):
        patches.revert()
    assert mod.function is theirs
    assert patches.status()[0].state is State.APPLIED
    mod.function = ours
    patches.revert()


def test_declared_copies_are_rebound_and_restored_others_are_not(upstream: Any) -> None:
    name = upstream(SOURCE)
    mod, copies = importlib.import_module(f"{name}.mod"), importlib.import_module(f"{name}.copies")
    original = mod.function
    patches = applied(mod, "function", aliases=(f"{name}.copies:function", f"{name}.elsewhere:function"))
    assert copies.function is mod.function
    assert copies.other is original
    assert patches.status()[0].aliases == (f"{name}.copies:function",)
    patches.revert()
    assert copies.function is copies.other is mod.function is original


def test_a_copy_that_holds_something_else_is_left_alone(upstream: Any) -> None:
    name = upstream(SOURCE)
    mod, copies = importlib.import_module(f"{name}.mod"), importlib.import_module(f"{name}.copies")
    vars(copies)["function"] = "mine"
    patches = applied(mod, "function", aliases=(f"{name}.copies:function",))
    assert copies.function == "mine"
    assert patches.status()[0].aliases == ()


def test_revert_reaches_the_modules_that_copied_the_patched_function(upstream: Any) -> None:
    name = upstream(SOURCE)
    mod = importlib.import_module(f"{name}.mod")
    original = mod.function
    patches = applied(mod, "function")
    copies = importlib.import_module(f"{name}.copies")
    assert copies.function(1) == ("patched", 2)
    patches.revert()
    assert copies.function is copies.other is original


def test_a_failure_half_way_restores_what_was_done(upstream: Any) -> None:
    class Stubborn(types.ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            raise RuntimeError("read-only module")

    name = upstream(SOURCE)
    mod, copies = importlib.import_module(f"{name}.mod"), importlib.import_module(f"{name}.copies")
    original = mod.function
    copies.__class__ = Stubborn
    patches = PatchSet([patch(f"{name}.mod:function", tagged, aliases=(f"{name}.copies:function",))])
    with pytest.raises(Exception, match="read-only module"):
        patches.apply()
    assert mod.function is original
    assert patches.status()[0].state is State.FAILED


def test_applying_twice_changes_nothing(mod: Any) -> None:
    patches = applied(mod, "function")
    installed = mod.function
    patches.apply()
    patches.arm()
    assert mod.function is installed
    assert mod.function(1) == ("patched", 2)


def test_a_reloaded_module_is_patched_again_by_apply(mod: Any) -> None:
    patches = applied(mod, "function")
    importlib.reload(mod)
    assert mod.function(1) == 2
    patches.apply()
    assert mod.function(1) == ("patched", 2)


def test_get_original_gives_the_function_a_wrap_would_get(mod: Any) -> None:
    target = f"{mod.__name__}:Base.static"
    inner = vars(mod.Base)["static"].__func__
    patches = PatchSet([patch(target, tagged)])
    assert patches.get_original(target) is inner
    patches.apply()
    assert patches.get_original(target) is inner
    with pytest.raises(TargetMissing, match="not loaded"):
        patches.get_original("not.loaded:name")


def test_an_unknown_id_lists_the_known_ones(mod: Any) -> None:
    patches = applied(mod, "function", id="known")
    with pytest.raises(UnknownPatch, match="known"):
        patches.revert("unknwon")
