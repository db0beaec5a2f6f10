# SPDX-License-Identifier: Apache-2.0
"""The plain values of the MoE core: topology, placement, step, expert weights. Every misuse gets one clear error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch.core.moe.activations import Activation
from vllm_ascend_patch.core.moe.comm import METHODS, Method, make_method
from vllm_ascend_patch.core.moe.comm.base import DispatchedRows, MoECommMethod, MoEInput
from vllm_ascend_patch.core.moe.comm.padding import clean_rows
from vllm_ascend_patch.core.moe.constants import _kept, first_rows, row_index, spread_ids, zero_rows
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, ParallelAxis, Topology

ALONE = Topology(ParallelAxis(), ParallelAxis(), ParallelAxis())


class SomeGroup:
    """Stands where a process group is stored; these tests never communicate."""


def axis(size: int, rank: int) -> ParallelAxis:
    return ParallelAxis(size, rank, SomeGroup() if size > 1 else None)  # type: ignore[arg-type]


def topology(tp: int, dp: int, rank: int, sequence_parallel: bool = False) -> Topology:
    return Topology(axis(tp, rank % tp), axis(dp, rank // tp), axis(tp * dp, rank), sequence_parallel)


def test_axis_without_its_group_or_with_a_rank_outside_is_refused() -> None:
    with pytest.raises(MoEConfigError, match="size 2 needs its process group"):
        ParallelAxis(2, 0)
    with pytest.raises(MoEConfigError, match="rank 2 is outside"):
        axis(2, 2)


def test_topology_refuses_layouts_it_does_not_know() -> None:
    with pytest.raises(MoEConfigError, match="expert parallel size 2 is not supported: it has to be 1 or TP x DP"):
        Topology(axis(2, 0), axis(2, 0), axis(2, 0))
    with pytest.raises(MoEConfigError, match=r"does not follow the layout dp_rank \* tp_size \+ tp_rank = 1"):
        Topology(axis(2, 1), axis(2, 0), axis(4, 2))
    with pytest.raises(MoEConfigError, match="needs expert parallelism"):
        Topology(axis(2, 0), axis(2, 0), ParallelAxis(), sequence_parallel=True)


@given(experts=st.integers(1, 600), size=st.integers(1, 64))
def test_linear_placement_gives_every_expert_to_exactly_one_rank(experts: int, size: int) -> None:
    if experts < size:
        with pytest.raises(MoEConfigError, match="every rank needs an expert"):
            ExpertPlacement.linear(experts, size, 0)
        return
    placements = [ExpertPlacement.linear(experts, size, rank) for rank in range(size)]
    owned = [e for p in placements for e in range(p.first_local, p.first_local + p.num_local)]
    assert owned == list(range(experts))
    assert max(p.num_local for p in placements) - min(p.num_local for p in placements) <= 1
    assert placements[0].is_even == (experts % size == 0)


@given(
    tokens=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    tp=st.sampled_from([1, 2, 3, 4]),
    active=st.integers(0, 40),
    data=st.data(),
)
def test_sequence_parallel_chunks_hold_every_row_and_every_active_token_once(
    tokens: list[int], tp: int, active: int, data: st.DataObject
) -> None:
    if tp * len(tokens) == 1:
        return
    dp_rank = data.draw(st.integers(0, len(tokens) - 1))
    active = min(active, tokens[dp_rank])
    step = MoEStep(tuple(tokens), active, "allgather")
    ranks = [topology(tp, len(tokens), dp_rank * tp + t, sequence_parallel=tp > 1) for t in range(tp)]
    rows = [step.rows(rank) for rank in ranks]
    assert len(set(rows)) == 1
    assert tokens[dp_rank] <= sum(rows) < tokens[dp_rank] + tp
    assert sum(step.active_rows(rank) for rank in ranks) == active
    assert step.rows_per_gather_rank(ranks[0])[ranks[0].gather_axis.rank] == rows[0]
    # Active tokens come first: a chunk is only short when the later ones are empty.
    counts = [step.active_rows(rank) for rank in ranks]
    assert counts == sorted(counts, reverse=True)


def test_mask_is_cut_to_the_rows_of_a_sequence_parallel_rank() -> None:
    mask = torch.tensor([True, True, True, False, False])
    step = MoEStep((5,), 5, "mc2", captured=True, active_mask=mask)
    masks = [step.mask_rows(topology(2, 1, rank, sequence_parallel=True)) for rank in range(2)]
    assert [m.tolist() for m in masks if m is not None] == [[True, True, True], [False, False, False]]


def test_captured_step_without_a_mask_treats_all_rows_as_tokens() -> None:
    # The count of the step that happened to be captured must not be frozen into later replays.
    assert MoEStep((8,), 3, "mc2", captured=True).active_rows(ALONE) == 8
    assert MoEStep((8,), 3, "mc2").active_rows(ALONE) == 3


def test_rows_that_contradict_the_agreement_are_refused() -> None:
    with pytest.raises(MoEConfigError, match=r"hidden_states has 4 rows on DP rank 0, but the ranks agreed on 5"):
        MoEStep((5,), 5, "allgather").check(ALONE, torch.zeros(4, 8))
    with pytest.raises(MoEConfigError, match="token counts for 2 DP ranks, the topology has 1"):
        MoEStep((5, 5), 5, "allgather").check(ALONE, torch.zeros(5, 8))
    with pytest.raises(MoEConfigError, match="have to be >= 0"):
        MoEStep((-1,), 0, "allgather")


@pytest.mark.parametrize("by_mask", [False, True])
def test_rows_without_a_token_carry_nothing(by_mask: bool) -> None:
    inputs = MoEInput(
        torch.full((5, 4), float("nan")), torch.full((5, 3), float("inf")), torch.full((5, 3), 99, dtype=torch.int32)
    )
    for tensor, value in ((inputs.hidden_states, 1.0), (inputs.topk_weights, 0.5), (inputs.topk_ids, 2)):
        tensor[:2] = value
    mask = torch.tensor([True, True, False, False, False]) if by_mask else None
    cleaned = clean_rows(inputs, num_experts=7, rows=6, active=2, mask=mask)
    assert cleaned.hidden_states.tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 4
    assert cleaned.topk_weights.tolist() == [[0.5] * 3] * 2 + [[0.0] * 3] * 4
    assert (cleaned.topk_ids[:2] == 2).all()
    for row in cleaned.topk_ids[2:].tolist():
        assert len(set(row)) == 3
        assert set(row) <= set(range(7))
    assert torch.isnan(inputs.hidden_states[2:]).all(), "the caller's tensors are not touched"


@given(rows=st.integers(1, 50), top_k=st.integers(1, 8), extra=st.integers(0, 9))
def test_spread_ids_are_valid_distinct_within_a_row_and_even(rows: int, top_k: int, extra: int) -> None:
    experts = top_k + extra
    ids = spread_ids(rows, top_k, experts, torch.device("cpu"))
    assert all(len(set(row)) == top_k for row in ids.tolist())
    counts = torch.bincount(ids.flatten().long(), minlength=experts)
    assert len(counts) == experts
    assert counts.max() - counts.min() <= 1


@given(sizes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=5))
def test_kept_constants_are_right_whatever_sizes_were_asked_for_before(sizes: list[tuple[int, int]]) -> None:
    cpu = torch.device("cpu")
    for rows, active in ((max(pair), min(pair)) for pair in sizes):
        assert first_rows(rows, active, cpu).tolist() == [True] * active + [False] * (rows - active)
        assert row_index(rows, cpu).tolist() == list(range(rows))
        assert zero_rows(rows, torch.ones(1, 3, dtype=torch.int32)).tolist() == [[0] * 3] * rows


def test_a_constant_is_made_once_and_outlives_a_larger_one() -> None:
    like = torch.ones(1, 777)
    small = zero_rows(3, like)
    assert zero_rows(60, like).data_ptr() == small.data_ptr()
    large = zero_rows(500, like)
    assert large.data_ptr() != small.data_ptr()
    assert zero_rows(3, like).data_ptr() == large.data_ptr()
    kept = [
        tensor for key, tensors in _kept.items() if like.shape[1:] in cast(tuple[Any, ...], key) for tensor in tensors
    ]
    assert sum(tensor.shape[0] for tensor in kept) == 64 + 512


def test_weights_are_views_of_what_was_loaded_and_scales_get_the_operators_dtypes() -> None:
    w13, w2 = torch.randn(2, 2 * 64, 32).bfloat16(), torch.randn(2, 32, 64).bfloat16()
    weights = ExpertWeights.from_loaded(w13, w2, activation="silu")
    assert torch.equal(weights.w13, w13.transpose(1, 2))
    assert (weights.w13.data_ptr(), weights.w2.data_ptr()) == (w13.data_ptr(), w2.data_ptr())
    w13.zero_()  # what a reload writes is what is served
    assert not weights.w13.any()
    assert (weights.hidden_size, weights.intermediate_size, weights.num_local) == (32, 64, 2)
    int8 = {"w13": w13.to(torch.int8), "w2": w2.to(torch.int8), "activation": "silu"}
    scales = {"w13_scale": torch.rand(2, 128, 1), "w2_scale": torch.rand(2, 32, 1)}
    quantized = ExpertWeights.from_loaded(**int8, **scales, output_dtype=torch.bfloat16)  # type: ignore[arg-type]
    assert quantized.w13_scale is not None
    assert quantized.w2_scale is not None
    assert (quantized.w13_scale.dtype, quantized.w2_scale.dtype) == (torch.float32, torch.bfloat16)
    assert quantized.w13_scale.shape == (2, 128)


def loaded(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> dict[str, Any]:
    weights = {"w13": torch.zeros(2, 16, 4, dtype=dtype), "w2": torch.zeros(2, 4, 8, dtype=dtype)}
    return {**weights, "activation": "silu", **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (loaded(activation="situ"), "activation 'situ' is not supported; supported: silu"),
        (loaded(activation="relu2"), "activation 'relu2' is not supported; supported: silu"),
        (loaded(activation="swigluoai_uninterleave"), "'swigluoai_uninterleave' needs a limit"),
        (loaded(activation="relu2_no_mul"), r"have to be w13 \[E, I, H\] and w2 \[E, H, I\]"),
        (loaded(w13_bias=torch.zeros(2, 8)), r"w13_bias has shape \(2, 8\), expected \(2, 16\)"),
        (loaded(torch.int8, w2_bias=torch.zeros(2, 4)), "experts of torch.int8 with biases are not supported"),
        (loaded(torch.float8_e4m3fn), "float8_e4m3fn are not supported; use bf16, fp16, fp32 or W8A8 int8"),
        (loaded(torch.int8), "W8A8 experts need w13_scale, w2_scale and an output dtype"),
        (loaded(w13_scale=torch.ones(2, 16)), "only int8 experts have scales"),
        (
            loaded(torch.int8, w13_scale=torch.ones(2, 1), w2_scale=torch.ones(2, 4), output_dtype=torch.float16),
            r"w13_scale has shape \(2, 1\); only per-channel scales",
        ),
        (loaded(w2=torch.zeros(2, 4, 9, dtype=torch.bfloat16)), r"have to be w13 \[E, 2I, H\] and w2 \[E, H, I\]"),
        (
            {"w13": torch.empty(1, 2, 70000), "w2": torch.empty(1, 70000, 1), "activation": "silu"},
            "dimensions at most 65535",
        ),
    ],
)
def test_weights_that_cannot_run_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MoEConfigError, match=message):
        ExpertWeights.from_loaded(**arguments)


def test_activation_may_be_upstreams_enum_member() -> None:
    import enum

    Upstream = enum.Enum("Upstream", {"SILU": "silu", "SITU": "situ"})
    assert Activation.of(Upstream.SILU) == Activation()
    with pytest.raises(MoEConfigError, match="'situ'"):
        Activation.of(Upstream.SITU)


def test_an_activation_has_its_own_numbers_where_the_layer_has_none() -> None:
    assert Activation.of("swigluoai") == Activation("swigluoai", alpha=1.702, limit=7.0, bias=1.0)
    assert Activation.of("swigluoai", limit=6.0).limit == 6.0
    assert Activation.of("swiglustep") == Activation("swiglustep", limit=7.0)
    assert Activation.of("gelu_pytorch_tanh").name == "gelu_tanh"
    assert not Activation.of("silu", limit=10.0).plain_swiglu


def test_biases_get_the_operators_dtype() -> None:
    biases: dict[str, Any] = {"w13_bias": torch.ones(2, 16).bfloat16(), "w2_bias": torch.ones(2, 4).bfloat16()}
    weights = ExpertWeights.from_loaded(**loaded(), **biases)
    assert weights.w13_bias is not None
    assert weights.w2_bias is not None
    assert weights.w13_bias.dtype == weights.w2_bias.dtype == torch.float32
    weights = ExpertWeights.from_loaded(**loaded(torch.float16, w2_bias=torch.ones(2, 4)))
    assert weights.w2_bias is not None
    assert weights.w2_bias.dtype == torch.float16


def test_methods_that_need_distributed_experts_refuse_to_start_without_them() -> None:
    placement = ExpertPlacement.linear(4)
    with pytest.raises(MoEConfigError, match="MC2 needs expert parallelism over at least 2 ranks"):
        make_method("mc2", ALONE, placement)
    with pytest.raises(MoEConfigError, match="AllToAll needs expert parallelism"):
        make_method("alltoall", ALONE, placement)
    with pytest.raises(
        MoEConfigError, match="unknown MoE communication method 'nccl'; known: allgather, alltoall, hierarchical, mc2"
    ):
        make_method("nccl", ALONE, placement)


@dataclass(frozen=True, eq=False)
class LoopDispatch(DispatchedRows):
    order: torch.Tensor


class LoopMethod(MoECommMethod[MoEInput, LoopDispatch]):
    """A fourth method, for one rank and top-1: sorts with torch and communicates nothing."""

    name = "loop"

    def prepare(self, inputs: MoEInput, step: MoEStep) -> MoEInput:
        return inputs

    def dispatch(self, prepared: MoEInput) -> LoopDispatch:
        counts = torch.bincount(prepared.topk_ids.flatten(), minlength=self.placement.num_experts)
        order = prepared.topk_ids.flatten().argsort(stable=True)
        return LoopDispatch(prepared.hidden_states[order], counts, None, order)

    def combine(self, dispatched: LoopDispatch, expert_output: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(expert_output).index_copy_(0, dispatched.order, expert_output)

    def finalize(self, prepared: MoEInput, combined: torch.Tensor) -> torch.Tensor:
        return combined * prepared.topk_weights


def test_a_fourth_method_is_one_class_and_one_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_ascend_patch.core.moe import driver

    def mlp(rows: torch.Tensor, counts: torch.Tensor, weights: ExpertWeights, scales: Any, sums: bool) -> torch.Tensor:
        expert_of_row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        gate, up = torch.einsum("ah,ahi->ai", rows, weights.w13[expert_of_row]).chunk(2, dim=1)
        return torch.einsum("ai,aih->ah", torch.nn.functional.silu(gate) * up, weights.w2[expert_of_row])

    monkeypatch.setitem(METHODS, LoopMethod.name, Method(f"{__name__}:LoopMethod", capturable=True))
    monkeypatch.setattr(driver, "expert_mlp", mlp)  # the real one needs an NPU
    method = make_method("loop", ALONE, ExpertPlacement.linear(3))
    w13, w2 = torch.randn(3, 8, 5), torch.randn(3, 5, 4)
    weights = ExpertWeights.from_loaded(w13, w2, activation="silu")
    x, ids, scale = torch.randn(6, 5), torch.tensor([[2], [0], [1], [2], [2], [0]]), torch.rand(6, 1)
    output = fused_moe(method, x, scale, ids, weights, MoEStep((6,), 6, "loop"))
    for t in range(6):
        gate, up = (w13[ids[t, 0]] @ x[t]).chunk(2)
        torch.testing.assert_close(output[t], scale[t, 0] * (w2[ids[t, 0]] @ (torch.nn.functional.silu(gate) * up)))


def test_driver_refuses_what_contradicts_the_layer() -> None:
    method = make_method("allgather", ALONE, ExpertPlacement.linear(2))
    weights = ExpertWeights.from_loaded(**loaded())
    x, scale, ids = torch.zeros(3, 4).bfloat16(), torch.ones(3, 2), torch.tensor([[0, 1]] * 3)
    step = MoEStep((3,), 3, "allgather")

    def run(**changes: Any) -> None:
        given = {
            "hidden_states": x,
            "topk_weights": scale,
            "topk_ids": ids,
            "weights": weights,
            "step": step,
            **changes,
        }
        fused_moe(method, **given)

    with pytest.raises(MoEConfigError, match="router weights on the input need top-1 routing, found top-2"):
        run(apply_router_weight_on_input=True)
    with pytest.raises(MoEConfigError, match=r"experts compute in torch\.bfloat16, the tokens are torch\.float16"):
        run(hidden_states=x.half())
    with pytest.raises(MoEConfigError, match="do not match tokens of hidden size 8"):
        run(hidden_states=torch.zeros(3, 8).bfloat16())
    with pytest.raises(MoEConfigError, match="router output does not match 3 tokens"):
        run(topk_ids=ids[:2])


def test_alltoall_refuses_a_captured_step() -> None:
    method = make_method("alltoall", topology(1, 2, 0), ExpertPlacement.linear(4, 2, 0))
    weights = ExpertWeights.from_loaded(**loaded())
    with pytest.raises(MoEConfigError, match="reads the device from the host and cannot run in a captured graph"):
        fused_moe(
            method,
            torch.zeros(3, 4).bfloat16(),
            torch.ones(3, 1),
            torch.zeros(3, 1, dtype=torch.int32),
            weights,
            MoEStep((3, 3), 3, "alltoall", captured=True),
        )
