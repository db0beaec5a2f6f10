# SPDX-License-Identifier: Apache-2.0
"""The mask that captured graphs read keeps its address and follows the number of active rows."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from vllm_ascend_patch.core.moe.active_mask import ActiveMask


def test_the_first_rows_are_active_and_the_memory_stays() -> None:
    mask = ActiveMask(8, "cpu")
    view = mask.first(6)
    assert view.tolist() == [False] * 6
    for active in (3, 6, 0, 1):
        mask.set(active)
        assert view.tolist() == [row < active for row in range(6)]
        assert mask.first(6).data_ptr() == view.data_ptr()


class Calls(TorchDispatchMode):
    """Names of the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_only_a_changed_count_runs_operators() -> None:
    mask = ActiveMask(4, "cpu")
    mask.set(2)
    with Calls() as unchanged:
        mask.set(2)
    with Calls() as changed:
        mask.set(3)
    assert not unchanged.names
    assert changed.names
