# SPDX-License-Identifier: Apache-2.0
"""Sigmoid routing with groups and a selection bias, in one operator, chooses what upstream's ``grouped_topk`` chooses.

The oracle is upstream's own function, read from its file and run on CPU tensors: importing vLLM would choose a platform.
Where scores tie, several answers are right; then both have to be among them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_npu  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.installed import vllm_file
from vllm_ascend_patch.core.moe import gating
from vllm_ascend_patch.core.moe.router_ops import top_k_sigmoid
from vllm_ascend_patch.seams.moe.router_kernels import grouped_topk
from vllm_ascend_patch.virtual_npu.kernels.gating import moe_gating_top_k

_ROUTER = vllm_file("model_executor", "layers", "fused_moe", "router", "grouped_topk_router.py")
needs_router = pytest.mark.skipif(
    not _ROUTER.exists(), reason="this vLLM has its grouped router elsewhere: not wrapped"
)


@functools.cache
def upstream() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``grouped_topk`` of the installed vLLM, undecorated, as it is on a device without kernels of its own."""
    (function,) = (
        node
        for node in ast.parse(_ROUTER.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "grouped_topk"
    )
    function.decorator_list = []
    switches = SimpleNamespace(VLLM_USE_FUSED_MOE_GROUPED_TOPK=False, VLLM_BATCH_INVARIANT=False)
    names: dict[str, Any] = {"torch": torch, "envs": switches}
    exec(compile(ast.Module([function], []), str(_ROUTER), "exec"), names)
    found: Callable[..., tuple[torch.Tensor, torch.Tensor]] = names["grouped_topk"]
    return found


class Launches(TorchDispatchMode):
    """Which operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def best(scores: torch.Tensor, count: int) -> list[set[int]]:
    """All sets of ``count`` indices that are the largest of ``scores``: more than one where they tie."""
    least = scores.sort(descending=True).values[count - 1]
    above = set((scores > least).nonzero().flatten().tolist())
    equal = (scores == least).nonzero().flatten().tolist()
    return [above | set(some) for some in combinations(equal, count - len(above))]


def right(scores: torch.Tensor, biased: bool, groups: int, kept: int, chosen: set[int]) -> bool:
    """Whether ``chosen`` are the largest scores within some ``kept`` best groups; scores of one token, bias included."""
    parts = scores.view(groups, -1)
    of_group = parts.topk(2).values.sum(-1) if biased else parts.amax(-1)
    for group_set in best(of_group, kept):
        allowed = torch.zeros_like(parts, dtype=torch.bool)
        allowed[sorted(group_set)] = True
        inside = scores[allowed.flatten()]
        of_chosen = scores[sorted(chosen)].sort(descending=True).values
        if allowed.flatten()[sorted(chosen)].all() and torch.equal(
            of_chosen, inside.sort(descending=True).values[: len(chosen)]
        ):
            return True
    return False


@needs_router
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 4),
    groups=st.sampled_from([1, 2, 4, 8]),
    size=st.integers(3, 6),
    kept=st.integers(1, 8),
    top_k=st.integers(1, 8),
    bias=st.sampled_from(["none", "fine", "coarse", "masks groups"]),
    ties=st.booleans(),
    factor=st.sampled_from([1.0, 2.5]),
)
@settings(max_examples=150, deadline=None)
def test_choices_and_weights_are_upstreams(
    seed: int,
    tokens: int,
    groups: int,
    size: int,
    kept: int,
    top_k: int,
    bias: str,
    ties: bool,
    factor: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = min(kept, groups)
    top_k = min(top_k, kept * size)
    experts = groups * size
    logits = torch.randn(tokens, experts, generator=generator) * 2
    if ties:
        logits = logits.round()
    drawn = torch.randn(experts, generator=generator)
    if bias == "coarse":
        drawn = (drawn * 2).round() / 2
    if bias == "masks groups":
        drawn.view(groups, size)[torch.randperm(groups, generator=generator)[: groups - kept]] = -torch.inf
    chosen_by = None if bias == "none" else drawn
    arguments = (top_k, True, groups, kept, "sigmoid", factor)
    want, want_ids = upstream()(logits, logits, *arguments, chosen_by)
    on_device = logits.npu()
    weights, ids = grouped_topk(
        upstream(), on_device, on_device, *arguments, None if chosen_by is None else chosen_by.npu()
    )
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    scores = logits.sigmoid()
    for token, (row, found, upstreams) in enumerate(
        zip(weights.cpu(), ids.cpu().tolist(), want_ids.tolist(), strict=True)
    ):
        biased = scores[token] if chosen_by is None else scores[token] + chosen_by
        assert len(set(found)) == top_k
        assert right(biased, chosen_by is not None, groups, kept, set(upstreams)), "the test's own rule"
        assert right(biased, chosen_by is not None, groups, kept, set(found))
        expected = scores[token].double()[found]
        torch.testing.assert_close(row.double(), expected / expected.sum() * factor, rtol=1e-5, atol=1e-7)
        if not ties and bias != "coarse":
            assert set(found) == set(upstreams)
            order = torch.tensor(upstreams).argsort()
            torch.testing.assert_close(row[torch.tensor(found).argsort()], want[token][order], rtol=1e-5, atol=1e-7)


@needs_router
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deepseek_v3s_router_is_one_operator(dtype: torch.dtype) -> None:
    logits, bias = torch.randn(3, 256).to(dtype).npu(), torch.randn(256).npu()
    with Launches() as launches:
        grouped_topk(upstream(), logits, logits, 8, True, 8, 4, "sigmoid", 2.5, bias)
    casts = ["aten::_to_copy"] if dtype is not torch.float32 else []
    assert launches.names == [*casts, "aten::nan_to_num", "npu::npu_moe_gating_top_k"]
    with Launches() as launches:
        top_k_sigmoid(logits, 8, renormalize=True, selection_bias=bias, scaling_factor=2.5)
    assert launches.names == [*casts, "aten::nan_to_num", "npu::npu_moe_gating_top_k"]


@needs_router
@pytest.mark.parametrize(
    "arguments",
    [(2, True, 4, 2, "softmax"), (2, False, 4, 2, "sigmoid"), (2, True, 8, 2, "sigmoid")],
    ids=["softmax", "weights as they are", "two experts per group"],
)
def test_the_rest_is_upstreams(arguments: tuple[Any, ...]) -> None:
    logits = torch.randn(2, 16)
    with Launches() as launches:
        weights, ids = grouped_topk(upstream(), logits.npu(), logits.npu(), *arguments, 1.5)
    assert "npu::npu_moe_gating_top_k" not in launches.names
    want, want_ids = upstream()(logits, logits, *arguments, 1.5)
    torch.testing.assert_close(weights.cpu(), want)
    assert torch.equal(ids.cpu(), want_ids)


def test_no_token_is_routed_without_a_launch() -> None:
    with Launches() as launches:
        weights, ids = gating.sigmoid_top_k(torch.empty(0, 16).npu(), 4, torch.zeros(16).npu(), groups=2, kept=1)
    assert (weights.shape, ids.shape, ids.dtype) == ((0, 4), (0, 4), torch.int32)
    assert "npu::npu_moe_gating_top_k" not in launches.names


def test_a_nan_takes_only_its_own_expert_away() -> None:
    logits = torch.zeros(2, 8)
    logits[0, 1] = torch.nan
    logits[1] = torch.nan
    weights, ids = (result.cpu() for result in gating.sigmoid_top_k(logits.npu(), 3, groups=2, kept=1))
    torch.testing.assert_close(weights, torch.tensor([[1 / 3] * 3, [0.0] * 3]))
    assert ids.tolist() == [[0, 2, 3], [0, 1, 2]]


@needs_router
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_no_nan_reaches_a_weight_where_the_choice_is_upstreams(bad: float, scoring: str, biased: bool) -> None:
    """Rows that pad a graph may hold anything."""
    logits = torch.randn(3, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    logits[1] = bad
    logits[2, 5] = bad
    bias = torch.zeros(16) if biased else None
    weights, ids = grouped_topk(
        upstream(), logits.npu(), logits.npu(), 3, False, 4, 2, scoring, 1.0, None if bias is None else bias.npu()
    )
    assert weights.isfinite().all()
    assert [len(set(row)) for row in ids.tolist()] == [3, 3, 3]
    want, want_ids = upstream()(logits[:1], logits[:1], 3, False, 4, 2, scoring, 1.0, bias)
    torch.testing.assert_close(weights[:1].cpu(), want)
    assert torch.equal(ids[:1].cpu(), want_ids)
    assert (5 in ids[2].tolist()) == (bad == torch.inf), "a NaN takes its own expert away, infinity is the best score"


def test_what_is_said_to_fit_is_what_the_operator_takes() -> None:
    for experts in (0, 2, 3, 16, 384, 2048, 2049):
        for groups in (0, 1, 3, 8, 64, 128):
            for kept in (0, 1, 8, 65):
                for top_k in (0, 1, 8, 300):
                    try:
                        moe_gating_top_k(torch.zeros(1, experts), top_k, group_count=groups, k_group=kept, norm_type=1)
                    except RuntimeError:
                        accepted = False
                    else:
                        accepted = True
                    assert gating.takes(experts, top_k, groups, kept) == accepted, (experts, groups, kept, top_k)
