# SPDX-License-Identifier: Apache-2.0
"""Whether a release of vLLM can capture graphs here: by its patches, and by the torch that it compiles with.

What is captured then is decided in ``npu/compilation_defaults.py``. Imports neither torch nor vLLM.
"""

from __future__ import annotations

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

from vllm_ascend_patch.releases.declared.graphs import GRAPH_CAPTURE

from . import records

_TORCH_OF_THEIR_TIME = SpecifierSet("<2.9")
_COMPILES_WITH_IT_ONLY = SpecifierSet("<0.11.1")
"""Releases that replace Dynamo's ``inline_call`` by a function with the parameters that it has in torch up to 2.8."""


_WHOLE_STEPS = SpecifierSet(">=0.32.0,<0.33.0")
"""Releases on which graphs of whole decode steps were run."""


def full_graph_obstacle(release: str) -> str | None:
    """Why no graph of ``release`` holds attention, in words; None if nothing is in the way."""
    if _WHOLE_STEPS.contains(release, prereleases=True):
        return None
    return f"graphs of whole steps were not tried with vLLM {release}"


def graph_obstacle(release: str) -> str | None:
    """Why ``release`` runs without graphs with the installed torch, in words; None if nothing is in the way."""
    if not records.covers(GRAPH_CAPTURE, release):
        return f"vLLM {release} has no graph modes"
    torch = version("torch")
    if _COMPILES_WITH_IT_ONLY.contains(release, prereleases=True) and not _TORCH_OF_THEIR_TIME.contains(torch):
        return f"vLLM {release} compiles models only with torch {_TORCH_OF_THEIR_TIME}, found {torch}"
    return None
