# SPDX-License-Identifier: Apache-2.0
"""Importing this package arms the patch set: stock vLLM, imported before or after, serves on Ascend NPUs. No torch or
vLLM here.

    import vllm_ascend_patch            # before the engine is built
    from vllm import LLM

or, for a deployment that exists already, ``VLLM_ASCEND_PATCH=1`` in its environment. ``VLLM_ASCEND_PATCH=0`` keeps
everything off. The functions below are the whole public API.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from . import envs

if TYPE_CHECKING:
    from .patching import PatchSet, PatchStatus

__all__ = ["apply", "arm", "disarm", "get_original", "hand_over", "revert", "status"]
__version__ = "0.1.0"

_SWITCH = "VLLM_ASCEND_PATCH"
_patch_set: "PatchSet | None" = None
_environment_before: str | None = None
_environment_set = False


def _patches() -> "PatchSet":
    """The one patch set of this process, made on first use."""
    global _patch_set
    if _patch_set is None:
        from .patching import PatchSet
        from .releases import declarations, wanted

        _patch_set = PatchSet(
            declarations.patches(),
            examine=_examine,
            strict=lambda: envs.VLLM_ASCEND_PATCH_STRICT,
            enabled=wanted.why_disabled,
        )
    return _patch_set


def _examine(patch: Any) -> Any:
    """Compare a patch with the installed vLLM; imported when the first target arrives, so that arming stays cheap."""
    from vllm_ascend_patch.releases.guard import examine

    return examine(patch)


def arm() -> None:
    """Patch what is loaded already, the rest when it is imported, and mark the environment for child processes.
    Idempotent.

    Raises:
        AppliedTooLate: vLLM chose its platform before; the patch set has to be there first.
        EnvError, UnknownPatch: a variable or a patch id is misspelt.
        PatchRefused, PatchError: a module that is loaded already cannot be patched.
    """
    global _environment_before, _environment_set
    from . import logs
    from .releases import wanted

    logs.configure(envs.VLLM_ASCEND_PATCH_LOG)
    if envs.switched_off():
        logs.logger.warning("%s=%s: not arming the patch set", _SWITCH, os.environ[_SWITCH])
        return
    envs.validate()
    wanted.check(_patches().patches)
    if "vllm.platforms" in sys.modules:
        from . import plugin

        plugin.raise_if_too_late()
    if not _environment_set:
        _environment_before, _environment_set = os.environ.get(_SWITCH), True
    os.environ[_SWITCH] = "1"
    _patches().arm()


def disarm() -> None:
    """Stop waiting for modules, and give the environment back as it was. What is applied stays; see :func:`revert`."""
    global _environment_set
    if _patch_set is not None:
        _patch_set.disarm()
    if _environment_set:
        if _environment_before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = _environment_before
        _environment_set = False


def apply(*ids: str) -> None:
    """Apply the given patches (default: all enabled ones) to what is loaded and arm the others. Idempotent."""
    _patches().apply(*ids)


def revert(*ids: str) -> None:
    """Restore what the given patches replaced, aliases included. Idempotent.

    Without ids: everything, and nothing is armed any more, child processes included.
    """
    try:
        _patches().revert(*ids)
    finally:
        if not ids:
            disarm()


def hand_over(module_name: str) -> None:
    """What a vLLM built with the diffs in ``patches/`` calls at the end of each target module: patch it here and now.

    Does nothing while the patch set is not armed (``VLLM_ASCEND_PATCH=0``, or reverted).
    """
    if _patches().armed:
        _patches().take(sys.modules[module_name])


def status() -> "tuple[PatchStatus, ...]":
    """One row per patch: state, reason, rebound aliases, the vLLM release found."""
    return _patches().status()


def get_original(target: str) -> Any:
    """The function that ``"package.module:Class.name"`` was before it was patched."""
    return _patches().get_original(target)


def _is_command_line() -> bool:
    """Whether this process is our own command line, which reports on the patch set and must not be patched itself."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == "vllm-ascend-patch":
        return True
    return sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv


if not _is_command_line() and not envs.switched_off():
    arm()
