# SPDX-License-Identifier: Apache-2.0
"""The one patch set of this process: made, armed, applied, reverted, and marked in the environment for its children.

The functions are the package's public API. No torch or vLLM here: arming stays cheap.
"""

import os
import sys
from dataclasses import dataclass
from typing import Any

from . import envs, logs, platforms
from .patching import PatchSet, PatchStatus
from .patching.declaration import Patch
from .patching.verdict import Verdict
from .releases import declarations, wanted

_SWITCH = "VLLM_ASCEND_PATCH"


@dataclass
class _Process:
    """What is true of this process, and is written by the functions below only.

    Attributes:
        patch_set: made on first use.
        marked: the environment says that the patch set is on.
        before: the switch's value before that, None if it was not there.
    """

    patch_set: PatchSet | None = None
    marked: bool = False
    before: str | None = None


_process = _Process()


def patch_set() -> PatchSet:
    """The one patch set of this process."""
    if _process.patch_set is None:
        _process.patch_set = PatchSet(
            declarations.patches(),
            examine=_examine,
            strict=lambda: envs.VLLM_ASCEND_PATCH_STRICT,
            enabled=wanted.why_disabled,
        )
    return _process.patch_set


def _examine(patch: Patch) -> Verdict:
    """Compare a patch with the installed vLLM; imported when the first target arrives, so that arming stays cheap."""
    from .releases.guard import examine

    return examine(patch)


def arm() -> None:
    """Patch what is loaded already, the rest when it is imported, and mark the environment for child processes.
    Idempotent.

    Raises:
        AppliedTooLate: vLLM chose its platform before; the patch set has to be there first.
        EnvError, UnknownPatch: a variable or a patch id is misspelt.
        PatchRefused, PatchError: a module that is loaded already cannot be patched.
    """
    logs.configure(envs.VLLM_ASCEND_PATCH_LOG)
    if envs.switched_off():
        logs.logger.warning("%s=%s: not arming the patch set", _SWITCH, os.environ[_SWITCH])
        return
    envs.validate()
    wanted.check(patch_set().patches)
    platforms.raise_if_too_late()
    if not _process.marked:
        _process.before, _process.marked = os.environ.get(_SWITCH), True
    os.environ[_SWITCH] = "1"
    patch_set().arm()


def disarm() -> None:
    """Stop waiting for modules, and give the environment back as it was. What is applied stays; see ``revert``."""
    if _process.patch_set is not None:
        _process.patch_set.disarm()
    if _process.marked:
        if _process.before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = _process.before
        _process.marked = False


def apply(*ids: str) -> None:
    """Apply the given patches (default: all enabled ones) to what is loaded and arm the others. Idempotent."""
    patch_set().apply(*ids)


def revert(*ids: str) -> None:
    """Restore what the given patches replaced, aliases included. Idempotent.

    Without ids: everything, and nothing is armed any more, child processes included.
    """
    try:
        patch_set().revert(*ids)
    finally:
        if not ids:
            disarm()


def hand_over(module_name: str) -> None:
    """What a vLLM built with the diffs in ``patches/`` calls at the end of each target module: patch it here and now.

    Does nothing while the patch set is not armed (``VLLM_ASCEND_PATCH=0``, or reverted).
    """
    if patch_set().armed:
        patch_set().take(sys.modules[module_name])


def status() -> tuple[PatchStatus, ...]:
    """One row per patch: state, reason, rebound aliases, the vLLM release found."""
    return patch_set().status()


def applied() -> tuple[str, ...]:
    """Ids of the patches that this process has, or will have once their modules are imported."""
    return tuple(row.patch.id for row in status() if str(row.state) not in ("disabled", "not needed"))


def get_original(target: str) -> Any:
    """The function that ``"package.module:Class.name"`` was before it was patched."""
    return patch_set().get_original(target)
