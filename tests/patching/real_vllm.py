# SPDX-License-Identifier: Apache-2.0
"""Programs that run with the installed vLLM, one per argument, and print one JSON object. No test lives here.

Importing this module imports nothing of the package, so that a process can prove that nobody touched vLLM.
"""

import importlib
import sys
from typing import Any

from tests.support.processes import report


def raw(target: str) -> Any:
    """The object in the ``__dict__`` of the target's owner, or of the base that defines it."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    places = owner.__mro__ if isinstance(owner, type) else (owner,)
    return next(vars(place)[name] for place in places if name in vars(place))


def marked(value: Any) -> str | None:
    """The id of the patch that put the object there."""
    for inner in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
        mark = getattr(inner, "__patch_id__", None)
        if mark is not None:
            return str(mark)
    return None


def untouched(targets: list[str]) -> dict[str, Any]:
    """Load every target, then all plugins, and compare the identity of every target."""
    import vllm.plugins

    loaded, failed = {}, {}
    for target in targets:
        try:
            loaded[target] = raw(target)
        except Exception as error:
            failed[target] = repr(error)
    vllm.plugins.plugins_loaded = False
    vllm.plugins.load_general_plugins()
    from vllm.platforms import current_platform

    return {
        "platform": type(current_platform).__module__,
        "imported": sorted(
            name for name in sys.modules if name.startswith("vllm_ascend_patch") and name != "vllm_ascend_patch_entry"
        ),
        "loaded": len(loaded),
        "failed": failed,
        "changed": [target for target, before in loaded.items() if raw(target) is not before],
        "marked": [target for target, before in loaded.items() if marked(before)],
    }


def engine(arguments: list[str]) -> dict[str, Any]:
    """Configure an engine for a model, and start it if that works; what came of it, and what of this package is loaded."""
    from vllm import LLM
    from vllm.platforms import current_platform

    try:
        LLM(model=arguments[0], skip_tokenizer_init=True)
        outcome = "started"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    return {
        "outcome": outcome,
        "platform": type(current_platform).__qualname__,
        "imported": sorted(name for name in sys.modules if name.startswith("vllm_ascend_patch.")),
    }


def applied(targets: list[str]) -> dict[str, Any]:
    """Load every target of an armed process, report the states, revert, and look for what is left."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    for target in targets:
        importlib.import_module(target.partition(":")[0])
    import vllm_ascend_patch

    rows = {row.patch.id: {"state": str(row.state), "reason": row.reason} for row in vllm_ascend_patch.status()}
    originals = {}
    for row in vllm_ascend_patch.status():
        if row.state == "applied" and row.patch.kind != "add":
            originals[row.patch.target] = vllm_ascend_patch.get_original(row.patch.target)
    vllm_ascend_patch.revert()
    left = [target for target in originals if marked(raw(target))]
    lost = [target for target, before in originals.items() if vllm_ascend_patch.get_original(target) is not before]
    return {"rows": rows, "left": left, "lost": lost}


if __name__ == "__main__":
    action = {"untouched": untouched, "applied": applied, "engine": engine}[sys.argv[1]]
    report(action(sys.argv[2:]))
