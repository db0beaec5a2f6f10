# SPDX-License-Identifier: Apache-2.0
"""The list of all patches, in the order in which they are applied. Each seam declares its own; importing this imports
no vLLM and no torch."""

from importlib import import_module

from vllm_ascend_patch.patching.declaration import Patch

SEAMS: tuple[str, ...] = ("port", "latent", "moe", "step", "step_before_0_12", "engines", "runner_v2", "graphs")
"""Modules of ``declared/``, each with ``PATCHES: tuple[Patch, ...]``."""


def patches() -> tuple[Patch, ...]:
    """Every declared patch, for every release."""
    return declared(*SEAMS)


def declared(*seams: str) -> tuple[Patch, ...]:
    """The patches that these modules of ``declared/`` declare, in their order."""
    return tuple(patch for seam in seams for patch in import_module(f"{__package__}.declared.{seam}").PATCHES)
