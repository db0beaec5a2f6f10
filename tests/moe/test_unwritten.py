# SPDX-License-Identifier: Apache-2.0
"""Marks in parameters tell which of a checkpoint's tensors never arrived."""

from __future__ import annotations

import pytest
import torch

from vllm_ascend_patch.core.weights import mark, unwritten

SMALLEST = {dtype: torch.iinfo(dtype).min for dtype in (torch.int8, torch.int32, torch.int64)}
ROWS = (0, 4)  # gate and up projection of four rows each


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, *SMALLEST])
def test_what_was_not_written_is_named_by_expert_and_part(dtype: torch.dtype) -> None:
    weight = torch.empty(3, 8, 5, dtype=dtype)
    mark(weight, ROWS)
    assert unwritten(weight, ROWS) == [(expert, part) for expert in range(3) for part in range(2)]
    weight[0] = -7
    weight[1, :4] = 0
    weight[2, 4:] = 100
    assert unwritten(weight, ROWS) == [(1, 1), (2, 0)]
    weight[1, 4:] = SMALLEST.get(dtype, 1)
    weight[1, 4, 3] = 5
    weight[2, :4] = 1
    assert unwritten(weight, ROWS) == []


def test_a_mark_is_one_row_so_that_padding_after_a_tensor_is_left_as_it_is() -> None:
    weight = torch.zeros(2, 8, 5)
    mark(weight, ROWS)
    assert int(weight.isnan().sum()) == 2 * len(ROWS) * 5
    assert not weight[:, 1:4].any()
