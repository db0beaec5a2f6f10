# SPDX-License-Identifier: Apache-2.0
"""The communication methods, by name. A new method is one file and one row in this table."""

from __future__ import annotations

from typing import Any

from ..errors import MoEConfigError
from ..topology import ExpertPlacement, Topology
from .all_gather import AllGatherMethod
from .all_to_all import AllToAllMethod
from .base import MoECommMethod
from .mc2 import Mc2Method

METHODS: dict[str, type[MoECommMethod[Any, Any]]] = {
    AllGatherMethod.name: AllGatherMethod,
    Mc2Method.name: Mc2Method,
    AllToAllMethod.name: AllToAllMethod,
}


def make_method(name: str, topology: Topology, placement: ExpertPlacement) -> MoECommMethod[Any, Any]:
    """The method called ``name``; ``MoEConfigError`` names the known ones otherwise."""
    try:
        method = METHODS[name]
    except KeyError:
        raise MoEConfigError(
            f"unknown MoE communication method {name!r}; known: {', '.join(sorted(METHODS))}"
        ) from None
    return method(topology, placement)
