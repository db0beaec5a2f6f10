# SPDX-License-Identifier: Apache-2.0
"""Before vLLM 0.20 an idle rank's whole step would write to the slots of the rank's last one: the runner forgets them."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

from types import SimpleNamespace

import pytest
import torch

from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE
from vllm_ascend_patch.npu.model_runner import NPUModelRunner
from vllm_ascend_patch.releases import graphs


@pytest.mark.parametrize(
    ("release", "kept"), [("0.15.0", True), ("0.19.1", True), ("0.20.0", False), ("0.33.0", False)]
)
def test_the_releases_that_leave_them_in_place(release: str, kept: bool) -> None:
    assert graphs.keeps_slots(release) is kept


def test_every_row_of_a_whole_step_loses_its_slot_in_each_table() -> None:
    """Whole steps hold at most a block of rows; what lies behind is no graph's."""
    slots = [torch.arange(BLOCK_SIZE + 2) for _ in range(2)]
    tables = [SimpleNamespace(slot_mapping=SimpleNamespace(gpu=slot)) for slot in slots]
    runner = object.__new__(NPUModelRunner)
    runner.__dict__["input_batch"] = SimpleNamespace(block_table=SimpleNamespace(block_tables=tables))
    runner._forget_slots()
    for slot in slots:
        assert slot.tolist() == [-1] * BLOCK_SIZE + [BLOCK_SIZE, BLOCK_SIZE + 1]
