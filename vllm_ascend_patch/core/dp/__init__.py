# SPDX-License-Identifier: Apache-2.0
"""The data-parallel step vector: pack, post, wait, agree. Torch only; never imports vLLM.

What other parts of the package use is re-exported here; ``current.py`` holds this process's session.
"""

from .agreement import StepAgreement, agree
from .errors import (
    DPSyncError,
    FingerprintMismatchError,
    RankFailedError,
    RankMissingError,
    StepMismatchError,
    VoteChangedError,
)
from .session import DPSession, Vote
from .vector import DraftPlan, DraftVote, GraphMode, StepKind, StepVector

__all__ = [
    "DPSession",
    "DPSyncError",
    "DraftPlan",
    "DraftVote",
    "FingerprintMismatchError",
    "GraphMode",
    "RankFailedError",
    "RankMissingError",
    "StepAgreement",
    "StepKind",
    "StepMismatchError",
    "StepVector",
    "Vote",
    "VoteChangedError",
    "agree",
]
