# SPDX-License-Identifier: Apache-2.0
"""The ways in which data-parallel ranks can fail to agree, each with a message that an operator can act on.

Only exception types live here; who raises them says what was found.
"""

from __future__ import annotations


class DPSyncError(RuntimeError):
    """The data-parallel ranks cannot go on together. Never retried: the worker exits."""


class StepMismatchError(DPSyncError):
    """The columns of one matrix do not belong to the same step: some rank sent one vector more, or fewer."""


class VoteChangedError(DPSyncError):
    """What this rank runs is not what it told the other ranks it would run."""


class RankMissingError(DPSyncError):
    """A rank did not send its vector in time, or its process is gone."""


class RankFailedError(DPSyncError):
    """Another rank reported an error of its own and will not take part any more."""


class FingerprintMismatchError(DPSyncError):
    """The ranks were not started with the same software or settings."""
