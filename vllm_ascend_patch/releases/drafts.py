# SPDX-License-Identifier: Apache-2.0
"""Whether steps with drafts can be scheduled before the step before them is sampled, on a release of vLLM. No vLLM here."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

_ASYNCHRONOUS = SpecifierSet(">=0.32")
"""Releases on which it was run; ``npu/drafted_lengths.py`` says what it takes of upstream's model runner."""


def asynchronous_obstacle(release: str, runner_v2: bool) -> str | None:
    """Why steps with drafts are scheduled in turn, in words; None if they need not be.

    Args:
        release: of vLLM, as it says itself.
        runner_v2: model runner V2 serves.
    """
    if runner_v2:
        return "model runner V2 gives attention on the host only a bound of key lengths"
    if not _ASYNCHRONOUS.contains(release, prereleases=True):
        return f"it was run with vLLM {_ASYNCHRONOUS}, found {release or 'an unknown one'}"
    return None
