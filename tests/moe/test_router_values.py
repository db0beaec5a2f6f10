# SPDX-License-Identifier: Apache-2.0
"""Router logits that no softmax exists for give scores of 0 and valid, distinct experts; they never reach other tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401

from vllm_ascend_patch.core.moe.router_ops import top_k_sigmoid, top_k_softmax

EXPERTS, TOP_K = 8, 3
Router = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def broken_rows() -> torch.Tensor:
    """One row for each kind of value, between rows of plain numbers."""
    logits = torch.randn(9, EXPERTS, generator=torch.Generator().manual_seed(3))
    logits[1, 2] = math.nan
    logits[3] = math.nan
    logits[5, 6] = math.inf
    logits[7] = -math.inf
    return logits


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("router", [top_k_softmax, top_k_sigmoid])
def test_ids_are_distinct_and_no_weight_is_nan_whatever_the_logits(
    router: Router, biased: bool, renormalize: bool
) -> None:
    logits = broken_rows().npu()
    bias = torch.arange(EXPERTS).float().npu() if biased else None
    weights, ids = (result.cpu() for result in router(logits, TOP_K, renormalize, bias))
    assert weights.isfinite().all()
    assert all(len(set(row)) == TOP_K and min(row) >= 0 and max(row) < EXPERTS for row in ids.tolist())
    plain, plain_ids = (result.cpu() for result in router(logits[::2].clamp(max=9.0), TOP_K, renormalize, bias))
    for row in (0, 2, 4, 6, 8):
        if row != 5:
            assert torch.equal(weights[row], plain[row // 2])
            assert torch.equal(ids[row], plain_ids[row // 2])


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_without_a_softmax_has_weights_of_zero(biased: bool, renormalize: bool) -> None:
    bias = torch.zeros(EXPERTS).npu() if biased else None
    weights, ids = (result.cpu() for result in top_k_softmax(broken_rows().npu(), TOP_K, renormalize, bias))
    for row in (1, 3, 5, 7):
        assert weights[row].tolist() == [0.0] * TOP_K
        assert len(set(ids[row].tolist())) == TOP_K
    assert (weights[::2].sum(dim=-1) > 0.1).all()


def test_a_nan_takes_only_its_own_experts_sigmoid_away() -> None:
    logits = torch.zeros(1, EXPERTS)
    logits[0, 4], logits[0, 5] = math.nan, math.inf
    weights, ids = (result.cpu() for result in top_k_sigmoid(logits.npu(), TOP_K, renormalize=False))
    assert weights.tolist() == [[1.0, 0.5, 0.5]]
    assert ids.tolist()[0][0] == 5
    assert 4 not in ids.tolist()[0]


def test_scores_that_underflow_to_zero_are_not_divided_by_zero() -> None:
    weights, _ = top_k_sigmoid(torch.full((2, EXPERTS), -200.0).npu(), TOP_K, renormalize=True)
    assert weights.cpu().tolist() == [[0.0] * TOP_K] * 2
