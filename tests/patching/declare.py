# SPDX-License-Identifier: Apache-2.0
"""Short ways to declare a patch in a test. No test lives here."""

from typing import Any

from vllm_ascend_patch.patching import Kind, Patch

_WORDS = {"why": "for a test", "how": "by a test", "upstream": "none: a test", "remove_when": "the test ends"}


def patch(target: str, implementation: Any, kind: Kind = Kind.WRAP, id: str = "p", **fields: Any) -> Patch:
    """A patch with the documentation filled in."""
    return Patch(id=id, target=target, kind=kind, implementation=implementation, **{**_WORDS, **fields})


def tagged(original: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrap that shows that it ran: ``("patched", result)``."""
    return "patched", original(*args, **kwargs)
