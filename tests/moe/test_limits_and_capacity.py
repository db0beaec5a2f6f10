# SPDX-License-Identifier: Apache-2.0
"""The limits table, the HCCL window floors and the capacity that follows from them. No device and no process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_ascend_patch.core.moe.capacity import SchedulerFacts, mc2_capacity
from vllm_ascend_patch.core.moe.limits import (
    MoEFacts,
    hccl_buffsize_floor_mib,
    max_rows_for_buffsize,
    mc2_limits,
    mc2_row_violation,
    mc2_violations,
)
from vllm_ascend_patch.core.moe.soc import Soc
from vllm_ascend_patch.virtual_npu.kernels import ep_limits

QWEN3_30B = MoEFacts(
    soc=Soc.A3, operator_version=2, tp_size=1, dp_size=16, ep_size=16, num_experts=128, hidden_size=2048, top_k=8
)


def broken(facts: MoEFacts, any_release: bool = False) -> str:
    return " | ".join(str(violation) for violation in mc2_violations(facts, any_release=any_release))


# The minimum MiB per table of the operator pages' formulas, worked out for common models (K = 8).
@pytest.mark.parametrize(
    ("soc", "ep", "experts", "hidden", "floors"),
    [
        (Soc.A3, 16, 128, 2048, {64: 76, 128: 152, 256: 304, 512: 608}),
        (Soc.A3, 16, 128, 4096, {64: 144, 128: 288, 256: 576, 512: 1152}),
        (Soc.A3, 16, 256, 7168, {64: 478, 128: 956, 256: 1912, 512: 3824}),
        (Soc.A2, 8, 128, 2048, {64: 36, 128: 68, 256: 132}),
        (Soc.A2, 16, 128, 2048, {64: 68, 128: 132, 256: 260}),
        (Soc.A2, 16, 256, 7168, {64: 228, 128: 452, 256: 900}),
    ],
)
def test_hccl_window_floor_follows_the_documented_formula(
    soc: Soc, ep: int, experts: int, hidden: int, floors: dict[int, int]
) -> None:
    facts = MoEFacts(
        soc=soc, operator_version=2, tp_size=1, dp_size=ep, ep_size=ep, num_experts=experts, hidden_size=hidden, top_k=8
    )
    assert {rows: hccl_buffsize_floor_mib(facts, rows, shared_experts=0) for rows in floors} == floors


def test_hccl_window_floor_counts_the_operators_default_of_one_shared_expert() -> None:
    # 2 * (8 * 512 * 16 * 4608 + (8 + 1) * 512 * 4096) bytes
    assert hccl_buffsize_floor_mib(QWEN3_30B, 512) == 612


@given(rows=st.integers(1, 512), experts=st.integers(1, 64), hidden=st.integers(1, 256), soc=st.sampled_from(list(Soc)))
def test_rows_that_fit_a_window_are_the_most_that_fit(rows: int, experts: int, hidden: int, soc: Soc) -> None:
    facts = MoEFacts(
        soc=soc,
        operator_version=2,
        tp_size=1,
        dp_size=16,
        ep_size=16,
        num_experts=experts * 16,
        hidden_size=hidden * 32,
        top_k=8,
    )
    rows = min(rows, mc2_limits(facts).max_rows)
    window = hccl_buffsize_floor_mib(facts, rows)
    fitting = max_rows_for_buffsize(facts, window)
    assert fitting >= rows
    assert hccl_buffsize_floor_mib(facts, fitting) <= window
    at_limit = fitting == mc2_limits(facts).max_rows
    assert at_limit or hccl_buffsize_floor_mib(facts, fitting + 1) > window


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ep_size": 1}, "expert parallel size on A3 (operators v2) is 1, at least 2 is supported"),
        ({"num_experts": 120}, "is 120, a multiple of the expert parallel size 16 is supported"),
        ({"num_experts": 1040}, "number of physical experts on A3 (operators v2) is 1040, at most 1024"),
        ({"hidden_size": 512}, "hidden size on A3 (operators v2) is 512, 1024..8192 is supported"),
        ({"hidden_size": 8193}, "1024..8192"),
        ({"top_k": 17}, "top-k on A3 (operators v2) is 17, at most 16"),
        ({"dtype": "float32"}, "is float32, bfloat16 or float16 is supported: serve with --dtype bfloat16"),
        ({"soc": Soc.A2, "ep_size": 9, "num_experts": 126}, "is 9, one of 2, 3, 4, 5, 6, 7, 8, 16, 32"),
        ({"soc": Soc.A2, "hidden_size": 7200}, "32..7168 in steps of 32"),
        ({"soc": Soc.A2, "hidden_size": 2064}, "32..7168 in steps of 32"),
        ({"soc": Soc.A2, "num_nodes": 3}, "number of nodes on A2 (operators v2) is 3, one of 1, 2, 4, 8"),
        ({"operator_version": 1}, "hidden size on A3 (operators v1) is 2048, 7168 is supported"),
        ({"operator_version": 1, "hidden_size": 7168, "top_k": 9}, "at most 8"),
        ({"operator_version": 1, "hidden_size": 7168, "ep_size": 4}, "one of 8, 16, 32, 64, 128, 144, 256, 288"),
        ({"operator_version": 1, "hidden_size": 7168, "num_experts": 528}, "at most 512"),
    ],
)
def test_each_broken_limit_is_named_with_what_is_allowed(change: dict[str, object], message: str) -> None:
    assert broken(QWEN3_30B) == ""
    assert message in broken(replace(QWEN3_30B, **change))  # type: ignore[arg-type]


def test_automatic_choice_keeps_to_what_every_edition_documents() -> None:
    small = replace(QWEN3_30B, soc=Soc.A2, ep_size=8)
    assert broken(small) == ""
    assert "one of 16, 32, 64, 128, 256" in broken(small, any_release=True)
    many = replace(QWEN3_30B, soc=Soc.A2, ep_size=16, num_experts=512)
    assert broken(many) == ""
    assert "experts per rank on A2 (operators v2) is 32, at most 24" in broken(many, any_release=True)


@pytest.mark.parametrize(("soc", "most"), [(Soc.A2, 256), (Soc.A3, 512)])
def test_tokens_per_rank_are_limited_per_generation(soc: Soc, most: int) -> None:
    facts = replace(QWEN3_30B, soc=soc)
    assert mc2_row_violation(facts, most) is None
    assert mc2_row_violation(facts, 1) is None
    assert mc2_row_violation(facts, 0) is not None
    assert f"is {most + 1}, 1..{most} is supported" in str(mc2_row_violation(facts, most + 1))


def test_capacity_is_what_decoding_needs_when_everything_fits() -> None:
    facts = replace(QWEN3_30B, tp_size=2, hccl_buffsize_mib=1024)
    capacity = mc2_capacity(facts, SchedulerFacts(8192, max_num_seqs=99))
    assert (capacity.rows, capacity.tokens) == (50, 100)
    assert "99 tokens of a full decode step" in capacity.limited_by


def test_capacity_covers_the_largest_captured_graph_and_speculative_tokens() -> None:
    facts = replace(QWEN3_30B, hccl_buffsize_mib=1024)
    assert mc2_capacity(facts, SchedulerFacts(8192, 64, max_captured_tokens=128)).rows == 128
    assert mc2_capacity(facts, SchedulerFacts(8192, 64, tokens_per_decode=3)).rows == 192
    assert mc2_capacity(facts, SchedulerFacts(100, 64, tokens_per_decode=3)).rows == 100


def test_capacity_stops_at_the_operators_limit() -> None:
    facts = replace(QWEN3_30B, soc=Soc.A2, hccl_buffsize_mib=1024)
    capacity = mc2_capacity(facts, SchedulerFacts(8192, max_num_seqs=1000))
    assert capacity.rows == 256
    assert "operator's limit of 256" in capacity.limited_by


def test_capacity_fits_the_default_window_when_none_was_set_and_says_what_would_allow_more() -> None:
    capacity = mc2_capacity(QWEN3_30B, SchedulerFacts(8192, max_num_seqs=256))
    assert 0 < capacity.rows < 256
    assert capacity.hccl_floor_mib <= 200 < hccl_buffsize_floor_mib(QWEN3_30B, capacity.rows + 1)
    assert "HCCL_BUFFSIZE=306 would allow 256 tokens" in capacity.limited_by


@pytest.mark.parametrize(("window", "rows"), [(512, 225), (579, 255), (580, 256), (1024, 256), (2, 0), (4, 1)])
def test_a_window_that_was_set_limits_the_capacity_to_what_it_holds(window: int, rows: int) -> None:
    """Hidden size 4096 on 16 ranks: 580 MiB for the 256 tokens of a full decode step."""
    facts = replace(QWEN3_30B, hidden_size=4096, hccl_buffsize_mib=window)
    capacity = mc2_capacity(facts, SchedulerFacts(8192, max_num_seqs=256))
    assert (capacity.rows, capacity.full_floor_mib) == (rows, 580)
    if rows < 256:
        assert f"HCCL_BUFFSIZE={window}; HCCL_BUFFSIZE=580 would allow 256 tokens per rank" in capacity.limited_by


def test_soc_numbers_map_to_generations() -> None:
    assert {Soc.from_version(n) for n in (220, 225)} == {Soc.A2}
    assert {Soc.from_version(n) for n in (250, 256)} == {Soc.A3}
    for other in (104, 202, 240, 260):
        with pytest.raises(ValueError, match="supported are Atlas A2"):
            Soc.from_version(other)


@given(
    soc=st.sampled_from(list(Soc)),
    version=st.sampled_from([1, 2]),
    ep=st.sampled_from([2, 3, 8, 9, 15, 16, 32, 64, 128, 144, 256, 288, 512, 768, 800]),
    local=st.sampled_from([1, 2, 4, 8, 16, 24, 25, 32, 64]),
    hidden=st.sampled_from([16, 32, 64, 1000, 1024, 2048, 4112, 7168, 7200, 8192, 8224]),
    top_k=st.integers(1, 18),
    rows=st.sampled_from([1, 255, 256, 257, 511, 512, 513]),
)
def test_whatever_these_limits_allow_the_strict_virtual_operators_accept(
    soc: Soc, version: int, ep: int, local: int, hidden: int, top_k: int, rows: int
) -> None:
    # Two readings of the vendor's pages by different hands: this table, and the virtual operators' own checks.
    facts = MoEFacts(
        soc=soc,
        operator_version=version,
        tp_size=1,
        dp_size=ep,
        ep_size=ep,
        num_experts=ep * local,
        hidden_size=hidden,
        top_k=top_k,
    )
    allowed = not mc2_violations(facts, any_release=False) and mc2_row_violation(facts, rows) is None
    algorithm = "fullmesh" if soc is Soc.A2 else "fullmesh_v1"
    sizes = ep_limits.Sizes("dispatch", version, soc.value, algorithm, rows, hidden, top_k, ep * local, ep)
    try:
        ep_limits.check_sizes(sizes)
        accepted = True
    except RuntimeError:
        accepted = False
    assert accepted == allowed
    if allowed:
        floor = hccl_buffsize_floor_mib(facts, rows)
        ep_limits.check_window(sizes, rows, floor)
        if soc is Soc.A2 or version == 1:
            assert floor == -(-ep_limits.window_floor(sizes, rows) // ep_limits.MIB)
