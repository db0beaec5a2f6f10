# SPDX-License-Identifier: Apache-2.0
"""A product built on the engine, as small as can be: what the life-cycle harness drives. Runs without pytest, in
processes of its own.

It patches ``small.target:Thing.method``, the static method ``Thing.static`` and the function ``small.target:function``
with its copy in ``small.copies``, and hands the switch on to child processes through the environment, as the package
does.
"""

import os
import sys
from typing import Any

from vllm_ascend_patch.patching import Patch, PatchSet

SWITCH = "SMALL_PATCH"
_WORDS: dict[str, Any] = {"kind": "wrap", "why": "test", "how": "test", "upstream": "none: test", "remove_when": "test"}


def tagged(original: Any, *args: Any) -> Any:
    """Shows that it ran."""
    return "patched", original(*args)


PATCHES = PatchSet(
    [
        Patch(id="method", target="small.target:Thing.method", implementation=tagged, **_WORDS),
        Patch(id="static", target="small.target:Thing.static", implementation=tagged, **_WORDS),
        Patch(
            id="function",
            target="small.target:function",
            implementation=tagged,
            aliases=("small.copies:function",),
            **_WORDS,
        ),
    ]
)


def arm() -> None:
    """As importing the package does."""
    os.environ[SWITCH] = "1"
    PATCHES.arm()


def revert() -> None:
    """As the package's ``revert()`` does."""
    PATCHES.revert()
    os.environ.pop(SWITCH, None)


def plugin() -> None:
    """As vLLM's plugin loader does in a process: nothing unless asked for."""
    if os.environ.get(SWITCH) == "1":
        PATCHES.arm()
        PATCHES.foresee()
        PATCHES.raise_failures()


def seen() -> str:
    """Whether the calls of a loaded target are patched: "patched", "stock", or how they disagree."""
    target, copies = sys.modules["small.target"], sys.modules["small.copies"]
    thing = target.Thing()
    results = {
        str(call()) for call in (thing.method, thing.static, target.Thing.static, target.function, copies.function)
    }
    known = {"stock": "stock", "('patched', 'stock')": "patched"}
    return known.get(results.pop(), "mixed") if len(results) == 1 else f"mixed: {results}"
