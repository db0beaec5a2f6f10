# SPDX-License-Identifier: Apache-2.0
"""On which releases of vLLM ModelSlim checkpoints are served: those that they were run on. No patch is needed for them.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

RELEASES = SpecifierSet(">=0.11")


def modelslim_obstacle(release: str) -> str | None:
    """Why ``release`` does not serve ModelSlim checkpoints, in words; None if it does."""
    if RELEASES.contains(release, prereleases=True):
        return None
    return f"vLLM {release} is not supported for ModelSlim checkpoints by this port, which needs vLLM {RELEASES}"
