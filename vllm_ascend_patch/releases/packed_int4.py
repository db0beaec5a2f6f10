# SPDX-License-Identifier: Apache-2.0
"""On which releases of vLLM int4 weights of compressed-tensors are served: those that the patch of their experts is declared
for.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from . import declarations


def releases(name: str) -> SpecifierSet:
    """The releases that serve a format, ``W4A16`` or ``W4A8``, as its patch says."""
    wanted = f"moe-{name.lower()}"
    return SpecifierSet(next(patch.releases for patch in declarations.patches() if patch.id == wanted))


def served(name: str, release: str | None) -> bool:
    """Whether ``release`` serves such weights."""
    return release is not None and releases(name).contains(release, prereleases=True)
