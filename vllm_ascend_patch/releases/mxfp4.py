# SPDX-License-Identifier: Apache-2.0
"""On which releases of vLLM gpt-oss is served from mxfp4 weights: those that it was run on. No patch is needed for it.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

RELEASES = SpecifierSet("==0.32.*")


def mxfp4_obstacle(release: str) -> str | None:
    """Why ``release`` does not serve mxfp4 weights, in words; None if it does."""
    if RELEASES.contains(release, prereleases=True):
        return None
    return f"vLLM {release} is not supported for mxfp4 weights by this port, which needs vLLM {RELEASES}"
