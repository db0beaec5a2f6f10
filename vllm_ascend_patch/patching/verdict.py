# SPDX-License-Identifier: Apache-2.0
"""The outcome of comparing a patch with an upstream release. Only the words live here; the comparing does not."""

from typing import NamedTuple

from .words import Words


class Finding(Words):
    """What a comparison found."""

    FITS = "fits"
    """The contract of the patch holds: apply."""

    NOT_NEEDED = "not needed"
    """The patch is declared for other releases: leave the target alone."""

    DRIFTED = "drifted"
    """The target is there, but not as recorded."""

    GONE = "gone"
    """The target is not there (or, for an addition, it is there already)."""

    UNKNOWN = "unknown"
    """There is nothing recorded for this release to compare with."""


class Verdict(NamedTuple):
    """A finding, the release that it is about, and its reasons, one line each (empty when it simply fits)."""

    finding: Finding
    release: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether the contract holds."""
        return self.finding is Finding.FITS

    @property
    def refuses(self) -> bool:
        """Whether the finding speaks against applying."""
        return self.finding in (Finding.DRIFTED, Finding.GONE, Finding.UNKNOWN)

    @property
    def line(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)
