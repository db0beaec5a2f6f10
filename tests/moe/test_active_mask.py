# SPDX-License-Identifier: Apache-2.0
"""The mask that captured graphs read keeps its address and follows the number of active rows."""

import torch

from vllm_ascend_patch.core.moe.active_mask import ActiveMask


def test_the_first_rows_are_active_and_the_memory_stays() -> None:
    mask = ActiveMask(8, "cpu")
    view = mask.first(6)
    assert view.tolist() == [False] * 6
    for active in (3, 6, 0, 1):
        mask.set(active)
        assert view.tolist() == [row < active for row in range(6)]
        assert mask.first(6).data_ptr() == view.data_ptr()


def test_an_unchanged_count_runs_no_operator() -> None:
    mask = ActiveMask(4, "cpu")
    mask.set(2)
    with torch.profiler.profile() as profile:
        mask.set(2)
    assert not profile.events()
