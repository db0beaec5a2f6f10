# SPDX-License-Identifier: Apache-2.0
"""The communication methods, by name. A new method is one file and one row in this table.

Rows are paths, so that names and properties are there (for ``envs.py``, selection and the ``plan`` command) without torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_ascend_patch.core.moe.errors import MoEConfigError

if TYPE_CHECKING:
    from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology

    from .base import MoECommMethod

ALLGATHER, MC2, ALLTOALL, HIERARCHICAL = "allgather", "mc2", "alltoall", "hierarchical"


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        path: the class, as ``module:name``.
        capturable: whether the method may run while a graph is captured (no host reads, fixed sizes).
    """

    path: str
    capturable: bool


METHODS: dict[str, Method] = {
    ALLGATHER: Method(f"{__name__}.all_gather:AllGatherMethod", capturable=True),
    MC2: Method(f"{__name__}.mc2:Mc2Method", capturable=True),
    ALLTOALL: Method(f"{__name__}.all_to_all:AllToAllMethod", capturable=False),
    HIERARCHICAL: Method(f"{__name__}.hierarchical:HierarchicalMethod", capturable=False),
}


def method_class(name: str) -> type[MoECommMethod[Any, Any]]:
    """The class of the method called ``name``; ``MoEConfigError`` names the known ones otherwise."""
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise MoEConfigError(f"unknown MoE communication method {name!r}; known: {known}")
    return _load(METHODS[name].path)


def make_method(name: str, topology: Topology, placement: ExpertPlacement) -> MoECommMethod[Any, Any]:
    """The method called ``name`` for one topology and placement."""
    return method_class(name)(topology, placement)


@cache
def _load(path: str) -> type[MoECommMethod[Any, Any]]:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
