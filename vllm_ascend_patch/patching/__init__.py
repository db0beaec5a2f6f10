# SPDX-License-Identifier: Apache-2.0
"""Declare, check, apply, revert and report patches of any Python package; knows wrapt, knows nothing of MoE, NPUs or
vLLM.

A patch is one frozen record (``Patch``). A ``PatchSet`` arms post-import hooks for a tuple of them, applies
each one when its module is complete, and can take all of it back. Nothing here imports a patched package.
"""

from .declaration import Kind, Patch, Target
from .errors import (
    AppliedTooLate,
    InvalidPatch,
    PatchConflict,
    PatchError,
    PatchRefused,
    TargetMissing,
    UnknownPatch,
)
from .patchset import PatchSet, PatchStatus, State
from .verdict import Finding, Verdict

__all__ = [
    "AppliedTooLate",
    "Finding",
    "InvalidPatch",
    "Kind",
    "Patch",
    "PatchConflict",
    "PatchError",
    "PatchRefused",
    "PatchSet",
    "PatchStatus",
    "State",
    "Target",
    "TargetMissing",
    "UnknownPatch",
    "Verdict",
]
