# SPDX-License-Identifier: Apache-2.0
"""Counts collectives as the dispatcher sees them: by operator, group and bytes, whoever calls them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class CollectiveCounter(TorchDispatchMode):
    """While active in a thread, records every ``c10d`` operator that thread runs.

    ``calls`` counts (operator, group size, device, bytes of the first tensor list).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, int, str, int]] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Models are compiled as they would be unobserved; vLLM's collectives run outside of the compiled pieces."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [t for t in tree_flatten(args)[0] if isinstance(t, torch.Tensor)]
            groups = [a for a in args if isinstance(a, torch.ScriptObject)]
            size = max((_group_size(g) for g in groups), default=0)
            device = tensors[0].device.type if tensors else "none"
            total = tensors[0].numel() * tensors[0].element_size() if tensors else 0
            self.calls[(func.overloadpacket.__name__, size, device, total)] += 1
        return func(*args, **(kwargs or {}))


def _group_size(value: torch.ScriptObject) -> int:
    try:
        from torch.distributed import ProcessGroup

        return ProcessGroup.unbox(value).size()
    except Exception:  # a reduce-operation object, not a group
        return 0
