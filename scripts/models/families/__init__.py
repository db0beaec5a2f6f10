# SPDX-License-Identifier: Apache-2.0
"""Every family that is run, by name; a module for each kind of layers."""

from __future__ import annotations

from . import bare, hybrids, latent, multimodal, plain, refused, windows
from .family import SIZES, VOCABULARY, Family

FAMILIES: dict[str, Family] = {
    name: family
    for module in (plain, windows, latent, hybrids, multimodal, bare, refused)
    for name, family in module.FAMILIES.items()
}

__all__ = ["FAMILIES", "SIZES", "VOCABULARY", "Family"]
