# SPDX-License-Identifier: Apache-2.0
"""The check of order as the Python side takes part in it: switched on from the environment, told of the reference kernels.

What is checked, and how, is C++ (csrc/torch/order*.cpp).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from .extension import load

#: "line" (call sites are one line) or "stack" (the whole Python stack); unset: order is not checked.
ORDER_VARIABLE = "VIRTUAL_NPU_CHECK_ORDER"


def export(environment: MutableMapping[str, str], *, stacks: bool) -> None:
    """Have processes with ``environment`` check."""
    environment[ORDER_VARIABLE] = "stack" if stacks else "line"


def install() -> None:
    """Check from now on if the environment says so. Before any stream is made."""
    wanted = os.environ.get(ORDER_VARIABLE)
    if not wanted:
        return
    if wanted not in ("line", "stack"):
        raise ValueError(f"{ORDER_VARIABLE}={wanted!r}: expected line or stack")
    load().check_order(stacks=wanted == "stack")
    atexit.register(_finish)


def _finish() -> None:
    trouble = load().finish_order()
    if trouble:
        print(trouble, file=sys.stderr)


def checked(name: str, written: frozenset[str]) -> Callable[..., Any]:
    """What tells the checker of calls of operator ``name``, which writes the arguments ``written``.

    It takes the device, the arguments by name and the results that are new memory, and returns what a graph keeps.
    """
    import torch

    from .graph import tensors_in

    launch = load().launch

    def tell(device: torch.device, given: Mapping[str, Any], new: list[torch.Tensor]) -> Any:
        reads = [t for argument, value in given.items() if argument not in written for t in tensors_in(value)]
        writes = [t for argument in written for t in tensors_in(given[argument])]
        return launch(name, device.index or 0, reads, writes + new, given.get("group_ep"))

    return tell
