# SPDX-License-Identifier: Apache-2.0
"""Which patches the user wants: the enable and disable lists, with every misspelt id an error. Reads the environment,
nothing else."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from vllm_ascend_patch import envs
from vllm_ascend_patch.patching.declaration import Patch
from vllm_ascend_patch.patching.errors import UnknownPatch

_ENABLE = "VLLM_ASCEND_PATCH_ENABLE"
_DISABLE = "VLLM_ASCEND_PATCH_DISABLE"


def _matches(patch_id: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(patch_id, pattern) for pattern in patterns)


def check(patches: Sequence[Patch]) -> None:
    """Raise ``UnknownPatch`` for an entry of either list that names no patch, and for an id that is in both."""
    ids = [patch.id for patch in patches]
    enable, disable = envs.VLLM_ASCEND_PATCH_ENABLE, envs.VLLM_ASCEND_PATCH_DISABLE
    wrong = [
        f"{variable} names {pattern!r}, which is no patch"
        for variable, patterns in ((_ENABLE, enable), (_DISABLE, disable))
        for pattern in patterns
        if pattern != "*" and not any(fnmatchcase(patch_id, pattern) for patch_id in ids)
    ]
    wrong += [f"{pattern!r} is in both {_ENABLE} and {_DISABLE}" for pattern in enable if pattern in disable]
    if wrong:
        raise UnknownPatch("; ".join(wrong) + f". The patches are: {', '.join(ids) or '(none)'}")


def why_disabled(patch: Patch) -> str | None:
    """The reason why the user, or the default, leaves this patch out; None when it is wanted.

    An id wins over a pattern with ``*``; between two patterns the enable list wins.
    """
    enable, disable = envs.VLLM_ASCEND_PATCH_ENABLE, envs.VLLM_ASCEND_PATCH_DISABLE
    if patch.id in disable:
        return f"named in {_DISABLE}"
    if _matches(patch.id, enable):
        return None
    if _matches(patch.id, disable):
        return f"matched by {_DISABLE}"
    return None if patch.default else f"off by default; name it in {_ENABLE} to turn it on"
