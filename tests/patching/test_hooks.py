# SPDX-License-Identifier: Apache-2.0
"""Hooks fire when a module is complete, not before, and a hook that failed fails every later import too."""

import importlib
import sys
import threading
from typing import Any

import pytest

from vllm_ascend_patch.patching import PatchError, PatchSet, State
from vllm_ascend_patch.patching.hooks import is_complete, when_complete

from .declare import patch, tagged

HALF = {
    "target": """
        import sys
        started = True
        from . import circle
        def function():
            return "stock"
        local_copy = function
        """,
    "circle": """
        import sys
        sys.during(sys.modules["PKG.target"])
        """,
}


@pytest.fixture
def half(upstream: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package in which ``sys.during(module)`` runs while the target is half-initialised."""
    name = upstream(HALF)

    def with_action(action: Any) -> str:
        monkeypatch.setattr(sys, "during", action, raising=False)
        return f"{name}.target"

    return with_action


def test_a_module_that_is_not_loaded_fires_when_it_is_imported(upstream: Any) -> None:
    name = upstream({"mod": "x = 1"})
    seen: list[Any] = []
    when_complete(f"{name}.mod", seen.append)
    assert seen == []
    module = importlib.import_module(f"{name}.mod")
    assert seen == [module]


def test_a_module_that_is_loaded_fires_at_once(upstream: Any) -> None:
    module = importlib.import_module(f"{upstream({'mod': 'x = 1'})}.mod")
    seen: list[Any] = []
    when_complete(module.__name__, seen.append)
    assert seen == [module]


def test_a_package_itself_can_be_watched(upstream: Any) -> None:
    name = upstream({"mod": ""})
    seen: list[Any] = []
    when_complete(name, seen.append)
    importlib.import_module(f"{name}.mod")
    assert seen == [sys.modules[name]]


def test_a_half_initialised_module_fires_when_its_import_ends(half: Any) -> None:
    complete_when_fired: list[bool] = []

    def action(module: Any) -> None:
        assert not is_complete(module)
        assert not hasattr(module, "function")
        when_complete(module.__name__, lambda fired: complete_when_fired.append(hasattr(fired, "local_copy")))
        assert complete_when_fired == []

    importlib.import_module(half(action))
    assert complete_when_fired == [True]


def test_the_spec_of_a_half_initialised_module_gets_its_own_class_back(half: Any) -> None:
    kinds: list[type] = []

    def action(module: Any) -> None:
        kinds.append(type(module.__spec__))
        when_complete(module.__name__, lambda fired: None)
        assert type(module.__spec__) is not kinds[0]

    module = importlib.import_module(half(action))
    assert type(module.__spec__) is kinds[0]
    assert is_complete(module)


def test_arming_from_a_half_initialised_module_patches_it_when_it_is_complete(half: Any) -> None:
    patches: list[PatchSet] = []

    def action(module: Any) -> None:
        patches.append(PatchSet([patch(f"{module.__name__}:function", tagged)]))
        patches[0].arm()
        assert patches[0].status()[0].state is State.ARMED

    module = importlib.import_module(half(action))
    assert patches[0].status()[0].state is State.APPLIED
    assert module.function() == ("patched", "stock")


def test_a_half_initialised_module_whose_import_fails_is_waited_for_again(half: Any) -> None:
    fired: list[Any] = []
    attempts: list[int] = []

    def action(module: Any) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            when_complete(module.__name__, fired.append)
            raise ValueError("the module itself fails")

    name = half(action)
    with pytest.raises(ValueError, match="itself fails"):
        importlib.import_module(name)
    assert fired == []
    module = importlib.import_module(name)
    assert fired == [module]


def test_a_hook_that_raises_fails_every_import_and_never_leaves_stock_code(upstream: Any) -> None:
    name = f"{upstream({'mod': 'x = 1'})}.mod"
    calls: list[int] = []

    def hook(module: Any) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise PatchError("refused")

    when_complete(name, hook)
    for _ in range(2):
        with pytest.raises(PatchError, match="refused"):
            importlib.import_module(name)
        assert name not in sys.modules
    assert importlib.import_module(name).x == 1
    assert len(calls) == 3


def test_an_importer_that_swallows_the_failure_does_not_hide_it(upstream: Any) -> None:
    name = upstream(
        {
            "mod": "def function(): return 'stock'",
            "user": """
                try:
                    from PKG import mod
                except Exception:
                    mod = None
                """,
        }
    )
    patches = PatchSet([patch(f"{name}.mod:not_there", tagged)])
    patches.arm()
    assert importlib.import_module(f"{name}.user").mod is None
    assert patches.status()[0].state is State.FAILED
    with pytest.raises(PatchError, match="not_there"):
        patches.raise_failures()


def test_a_cancelled_hook_never_fires(upstream: Any) -> None:
    name = f"{upstream({'mod': 'x = 1'})}.mod"
    seen: list[Any] = []
    when_complete(name, seen.append).cancel()
    importlib.import_module(name)
    assert seen == []


def test_a_module_that_another_thread_is_importing_fires_once_and_complete(upstream: Any, monkeypatch: Any) -> None:
    name = f"{upstream({'mod': 'import sys; sys.gate(); done = True'})}.mod"
    entered, leave = threading.Event(), threading.Event()

    def gate() -> None:
        entered.set()
        assert leave.wait(10)

    monkeypatch.setattr(sys, "gate", gate, raising=False)
    importer = threading.Thread(target=importlib.import_module, args=(name,))
    importer.start()
    assert entered.wait(10)
    seen: list[bool] = []
    when_complete(name, lambda module: seen.append(module.done))
    assert seen == []
    leave.set()
    importer.join(10)
    assert seen == [True]


def test_a_module_that_hands_itself_over_is_applied_and_stays_so_when_its_hook_fires(
    upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        import sys
        def function():
            return "stock"
        sys.during(sys.modules[__name__])
        """
    name = upstream({"mod": source})
    patches = PatchSet([patch(f"{name}.mod:function", tagged)])
    monkeypatch.setattr(sys, "during", patches.take, raising=False)
    patches.arm()
    assert importlib.import_module(f"{name}.mod").function() == ("patched", "stock")
    assert [row.state for row in patches.status()] == [State.APPLIED]
