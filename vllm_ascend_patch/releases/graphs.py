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


_WHOLE_STEPS = SpecifierSet(">=0.15")
"""Releases whose ranks agree on the graph mode of a step, and which capture what their dispatcher lists and nothing else."""
_WHOLE_LATENT_STEPS = SpecifierSet(">=0.32")
"""Releases on which whole steps with latent attention were run. Up to 0.22 an idle rank's query lengths are those of the
step before, which upstream's builder may take for a prefill."""
_KEEPS_SLOTS = SpecifierSet("<0.20")
"""Releases whose forwards without requests leave the slots of the step before where a graph of a whole step finds them."""


def full_graph_obstacle(release: str, latent: bool = False) -> str | None:
    """Why no graph of ``release`` holds attention, in words; None if nothing is in the way.

    Args:
        latent: the model has multi-head latent attention.
    """
    served = _WHOLE_LATENT_STEPS if latent else _WHOLE_STEPS
    if served.contains(release, prereleases=True):
        return None
    of = " of models with latent attention" if latent else ""
    return f"graphs of whole steps{of} are captured with vLLM {served}, found {release or 'an unknown one'}"


def keeps_slots(release: str) -> bool:
    """Whether a forward without requests would write to the slots of the step before, in a graph of a whole step."""
    return _KEEPS_SLOTS.contains(release, prereleases=True)


def graph_obstacle(release: str) -> str | None:
    """Why ``release`` runs without graphs with the installed torch, in words; None if nothing is in the way."""
    if not records.covers(GRAPH_CAPTURE, release):
        return f"vLLM {release} has no graph modes"
    torch = version("torch")
    if _COMPILES_WITH_IT_ONLY.contains(release, prereleases=True) and not _TORCH_OF_THEIR_TIME.contains(torch):
        return f"vLLM {release} compiles models only with torch {_TORCH_OF_THEIR_TIME}, found {torch}"
    return None
