# SPDX-License-Identifier: Apache-2.0
"""On which releases of vLLM packed int4 weights (compressed-tensors W4A16) are served: those that the patch of their experts
is declared for.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from . import declarations


def releases() -> SpecifierSet:
    """The releases, as the patch says."""
    return SpecifierSet(next(patch.releases for patch in declarations.patches() if patch.id == "moe-w4a16"))


def served(release: str | None) -> bool:
    """Whether ``release`` serves such weights."""
    return release is not None and releases().contains(release, prereleases=True)
