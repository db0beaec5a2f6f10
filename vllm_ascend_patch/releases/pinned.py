# SPDX-License-Identifier: Apache-2.0
"""The torch that each release of vLLM pins, and the torch_npu that goes with it: what deployments have. Data only; what was
run with which of them is in ``records.py``.
"""

from typing import NamedTuple

from packaging.specifiers import SpecifierSet

from .records import Stack


class Pinned(NamedTuple):
    """A torch, from one release of vLLM on.

    Attributes:
        first: the first release whose metadata asks for it.
        last: the last one.
        stack: that torch, and the newest torch_npu for it as of November 2026, post releases included.
        cann: torch_npu's versions and the CANN that the vendor names for each; docs/install.md has the sources.
    """

    first: str
    last: str
    stack: Stack
    cann: str


PINNED: tuple[Pinned, ...] = (
    Pinned(
        "0.10.0",
        "0.10.1.1",
        Stack("2.7.1", "2.7.1.post11"),
        "2.7.1.post8 → 9.1.0; 2.7.1.post4 → 9.0.0; 2.7.1.post2 → 8.5.0; 2.7.1 → 8.3.RC1",
    ),
    Pinned(
        "0.10.2",
        "0.11.0",
        Stack("2.8.0", "2.8.0.post5"),
        "2.8.0.post4 → 9.0.0; 2.8.0.post2 → 8.5.0; 2.8.0 → 8.3.RC1",
    ),
    Pinned(
        "0.11.1",
        "0.13.0",
        Stack("2.9.0", "2.9.0.post9"),
        "2.9.0.post6 → 9.1.0; 2.9.0.post2 → 9.0.0; 2.9.0 → 8.5.0",
    ),
    Pinned("0.14.0", "0.16.0", Stack("2.9.1", "2.9.1"), "2.9.1: unknown, not in the table"),
    Pinned("0.17.0", "0.19.1", Stack("2.10.0", "2.10.0.post7"), "2.10.0.post4 → 9.1.0; 2.10.0 → 9.0.0"),
    Pinned("0.20.0", "0.26.0", Stack("2.11.0", "2.11.0.post3"), "2.11.0 → 9.1.0"),
    Pinned(
        "0.27.0",
        "0.32.0",
        Stack("2.13.0", "2.13.0"),
        "2.13.0: unknown, not in the table; the vendor's images of 2.13.0rc1 hold CANN 9.1.0",
    ),
    Pinned("0.33.0", "0.33.0", Stack("2.14.0", "2.14.0"), "2.14.0: unknown, not in the table"),
)


def pinned(release: str) -> Pinned:
    """What deployments of ``release`` have; for a newer one than is known, what the newest has."""
    return [row for row in PINNED if SpecifierSet(f">={row.first}").contains(release, prereleases=True)][-1]
