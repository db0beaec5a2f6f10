# SPDX-License-Identifier: Apache-2.0
"""On which releases of vLLM layers that keep a state are served: those that they were run on. No patch is needed for them,
vLLM lets a platform bring such a layer's class and its backend.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

RELEASES = SpecifierSet("==0.32.*")


def states_obstacle(release: str) -> str | None:
    """Why ``release`` does not serve layers with states, in words; None if it does."""
    if RELEASES.contains(release, prereleases=True):
        return None
    return f"vLLM {release} is not supported for layers that keep a state by this port, which needs vLLM {RELEASES}"
