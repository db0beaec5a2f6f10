# SPDX-License-Identifier: Apache-2.0
"""The releases of the matrix, and the few Python packages that older ones need beside the environment's. Data only."""

from __future__ import annotations

from typing import Any

from packaging.version import Version

RELEASES: tuple[str, ...] = (
    *("0.10.0", "0.10.1.1", "0.10.2", "0.11.2", "0.12.0", "0.13.0", "0.14.1", "0.15.1", "0.16.0", "0.17.1", "0.18.1"),
    *("0.19.1", "0.20.2", "0.21.0", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1", "0.28.0", "0.29.0"),
    *("0.30.0", "0.31.0", "0.32.0", "0.33.0"),
)
"""The last patch release of every minor, and the two releases that the work began on."""

_DISKCACHE = "diskcache==5.6.3"  # imported by structured output until it moved to a cache of its own
_TRANSFORMERS_4 = ("transformers==4.57.6", "huggingface-hub==0.36.0", "tokenizers==0.22.1")

# From the release on, up to the next entry. Measured: the newest packages with which the release starts.
_PACKAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0.10.0", (*_TRANSFORMERS_4, _DISKCACHE)),
    ("0.19.0", (_DISKCACHE,)),
    ("0.20.0", ()),
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    # Upstream's own: its processor asks for the tokenizer all the same.
    "0.10.0": {"skip_tokenizer_init": False},
}
"""Engine arguments that a release needs."""


def packages(release: str) -> tuple[str, ...]:
    """Pins that ``release`` needs instead of what the environment has, installed without their dependencies."""
    fitting = [pins for first, pins in _PACKAGES if Version(first) <= Version(release)]
    return fitting[-1] if fitting else ()
