# SPDX-License-Identifier: Apache-2.0
"""The errors of the patch engine, and nothing else. None of them is an ImportError, so that no ``except ImportError``
hides one."""


class PatchError(RuntimeError):
    """Base of every error of the patch engine."""


class InvalidPatch(PatchError):
    """A declaration is malformed, or its implementation cannot be found."""


class UnknownPatch(PatchError):
    """A patch id or pattern names no declared patch."""


class TargetMissing(PatchError):
    """The module of a patch is loaded, but the attribute that it patches is not there."""


class PatchConflict(PatchError):
    """Two parties want the same attribute: two patches, or a patch and somebody else's assignment."""


class PatchRefused(PatchError):
    """The installed upstream is not what the patch was recorded against."""


class AppliedTooLate(PatchError):
    """What the patch set has to influence was decided before the patch set was armed."""
