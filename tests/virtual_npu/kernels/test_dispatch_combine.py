# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine across processes: every row proves its origin, identity experts return the input, limits hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_ascend_patch.virtual_npu.kernels.ep_limits import MIB, Sizes, check_sizes, resolve_algorithm, window_floor

from . import world


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.timeout(240)
def test_round_trips_on_a2(size: int, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "equal batches": {"batches": [5] * size},
        "uneven batches": {"batches": [7, 1, 3, 5, 2, 2, 1, 6][:size]},
        "masked tokens": {"batches": [6] * size, "active": [6, 2, 0, 5, 1, 1, 0, 3][:size]},
        "one rank with one masked token": {"batches": [1] * size, "active": [0] + [1] * (size - 1)},
        "nobody has an active token": {"batches": [1] * size, "active": [0] * size},
        "int8 on the way out": {"batches": [4] * size, "quant_mode": 2},
        "int8 from fp16": {"batches": [4] * size, "quant_mode": 2, "dtype": torch.float16},
        "one expert per rank": {"batches": [3] * size, "experts_per_rank": 1, "k": 1},
    }
    world.succeed(size, tmp_path, "round_trips", cases=cases)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.timeout(240)
def test_round_trips_on_a3(size: int, tmp_path: Path) -> None:
    base: dict[str, Any] = {"batches": [5] * size, "hidden": 1024, "a2": False}
    cases = {
        "shared expert": base | {"shared": True},
        "two-dimensional mask": base | {"active": [5, 3, 0, 4][:size], "two_dimensional": True},
        "int8 on the way back": base | {"comm_quant_mode": 2},
        "fullmesh_v1": base | {"comm_alg": "fullmesh_v1"},
        "fullmesh_v2": base | {"comm_alg": "fullmesh_v2"},
        "uneven batches": base | {"batches": [7, 1, 3, 5][:size]},
    }
    world.succeed(size, tmp_path, "round_trips", "A3", cases=cases)


@pytest.mark.timeout(180)
def test_version_1_on_a3(tmp_path: Path) -> None:
    arguments = {"hidden": 7168, "a2": False, "version": 1, "calls": 1, "buffer_mb": 400}
    world.succeed(8, tmp_path, "round_trip", "A3", batches=[2] * 8, **arguments)


def test_prefix_sums_of_expert_token_numbers(tmp_path: Path) -> None:
    by_rank = world.succeed(2, tmp_path, "token_numbers")
    assert all(first <= second for first, second in by_rank)
    assert sum(sums[-1] for sums in by_rank) == 2 * 4 * 2


def test_smooth_factors_per_expert(tmp_path: Path) -> None:
    world.succeed(2, tmp_path, "smooth_factors")


def failures(tmp_path: Path, size: int = 2, soc: str = "A2", **arguments: Any) -> list[str | None]:
    return [error for error, _ in world.run(size, tmp_path, "broken", soc, **arguments)]


def same_everywhere(errors: list[str | None], text: str) -> None:
    for rank, error in enumerate(errors):
        assert error is not None, f"rank {rank} succeeded where expected: {text}"
        assert text in error, f"rank {rank}: {error}"


def every_case(folder: Path, soc: str, cases: list[tuple[dict[str, Any], str]], **arguments: Any) -> None:
    """Every case in one world of two; each must fail on both ranks with its text, and leave the group usable."""
    wanted = [*cases, ({"changes": {}, **{k: v for k, v in cases[0][0].items() if k in ("hidden", "a2")}}, "")]
    by_rank = world.succeed(2, folder, "broken_many", soc, cases=[case for case, _ in wanted], **arguments)
    for (_, text), *errors in zip(cases, *(found[:-1] for found in by_rank), strict=True):
        same_everywhere(errors, text)
    assert [found[-1] for found in by_rank] == [None, None]


def test_a_rank_that_does_not_call_is_named(tmp_path: Path) -> None:
    errors = failures(tmp_path, 3, timeout=4, changes={1: {"absent": True}})
    for rank in (0, 2):
        assert "npu_moe_distribute_dispatch_v2: rank 1 of 3 did not make this call" in str(errors[rank])
    assert errors[1] is None


def test_a_rank_that_leaves_before_combine_is_named(tmp_path: Path) -> None:
    errors = failures(tmp_path, changes={}, timeout=4, combine_changes={0: {"absent": True}})
    assert "npu_moe_distribute_combine_v2: rank 0 of 2 did not make this call" in str(errors[1])


def test_a_rank_that_refuses_its_arguments_is_named_by_the_others(tmp_path: Path) -> None:
    twice = torch.zeros(4, 2, dtype=torch.int32)
    errors = failures(tmp_path, changes={1: {"expert_ids": twice}})
    assert "must not occur twice in one row of expert_ids, got expert 0 twice in row 0" in str(errors[1])
    assert "rank 1 must accept its arguments" in str(errors[0])


def test_rules_about_batches(tmp_path: Path) -> None:
    masks = {r: {"x_active_mask": torch.ones(b, dtype=torch.bool), "global_bs": 8} for r, b in enumerate([4, 2])}
    every_case(
        tmp_path,
        "A2",
        [
            ({"changes": masks, "batches": [4, 2]}, "batch sizes that differ between ranks exclude x_active_mask"),
            ({"changes": {}, "batches": [4, 2]}, "must be the largest times EP, 8, got 0"),
            ({"changes": {-1: {"global_bs": 16}}}, "global_bs with equal batches must be one of [0, 8], got 16"),
            (
                {"changes": {}, "batches": [257, 257]},
                "batch size per rank must be in [1, 256] on A2 (fullmesh), got 257",
            ),
        ],
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"quant_mode": 2}, "same quant_mode must be equal on all ranks"),
        ({"moe_expert_num": 16}, "moe_expert_num must be equal on all ranks, got [8, 16] by rank"),
        ({"global_bs": 8}, "global_bs must be equal on all ranks"),
        ({"comm_alg": "hierarchy", "ep_world_size": 2}, "rank 1 must accept its arguments"),
    ],
)
def test_ranks_must_agree(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    errors = failures(tmp_path, changes={1: change})
    assert text in str(errors[0])
    assert errors[1] is not None


LOCAL = [
    ({"expert_ids": torch.zeros(4, 2, dtype=torch.int64)}, "expert_ids must be int32, got int64"),
    ({"expert_ids": torch.full((4, 1), 8, dtype=torch.int32), "expert_scales": torch.ones(4, 1)}, "must lie in [0, 8)"),
    ({"x_active_mask": torch.tensor([True, False, True, True])}, "must be all True first, then False"),
    ({"x_active_mask": torch.ones(4, 2, dtype=torch.bool)}, "x_active_mask must be 1-D here"),
    ({"x_active_mask": torch.ones(4)}, "x_active_mask must be bool"),
    ({"expert_scales": None}, "expert_scales must be given on A2 (fullmesh), got None"),
    ({"expert_scales": torch.ones(4, 2).half()}, "expert_scales must be float32"),
    ({"x": torch.zeros(4, 64)}, "x must be bfloat16 or float16, got float32"),
    ({"x": torch.zeros(4, 48, dtype=torch.bfloat16)}, "hidden size must be a multiple of 32, got 48"),
    ({"x": torch.zeros(4, 7200, dtype=torch.bfloat16)}, "hidden size must be in [1, 7168]"),
    ({"moe_expert_num": 9}, "moe_expert_num must be a multiple of EP 2, got 9"),
    ({"moe_expert_num": 1026}, "moe_expert_num must be in [1, 1024]"),
    ({"quant_mode": 1}, "quant_mode must be 0 or 2"),
    ({"scales": torch.ones(8, 64)}, "scales needs quant_mode 2"),
    ({"expert_token_nums_type": 2}, "expert_token_nums_type must be 0 (sums) or 1 (counts)"),
    ({"expert_shard_type": 1}, "expert_shard_type must be 0"),
    ({"comm_alg": "fullmesh_v1"}, "comm_alg must be '', fullmesh or hierarchy on A2"),
    ({"comm_alg": "hierarchy"}, "ep_world_size must be one of 16, 32, 64 on A2 (hierarchy), got 2"),
    ({"tp_world_size": 2}, "tp_world_size must be 0 or 1"),
    ({"shared_expert_rank_num": 1}, "shared-expert ranks exist on A3 only"),
    ({"elastic_info": torch.zeros(8)}, "elastic_info must be None"),
    ({"ep_world_size": 4}, "ep_world_size must be that of group_ep, 2, got 4"),
    ({"group_ep": "g" * 128}, "group_ep must have 1 to 127 characters"),
    ({"zero_expert_num": 1}, "zero experts is not modelled"),
]


def test_dispatch_limits_on_a2(tmp_path: Path) -> None:
    every_case(tmp_path, "A2", [({"changes": {-1: change}}, text) for change, text in LOCAL])


A3_LOCAL = [
    ({"expert_scales": torch.ones(4, 2)}, "expert_scales must be None on A3 unless comm_alg is hierarchy"),
    ({"x": torch.zeros(4, 992, dtype=torch.bfloat16)}, "hidden size must be in [1024, 8192] on A3 (fullmesh_v1)"),
    ({"group_tp": "ep", "tp_world_size": 1}, "group_tp must differ from group_ep on A3"),
    ({"comm_alg": "fullmesh"}, "comm_alg must be one of"),
    ({"comm_alg": "hierarchy", "expert_scales": torch.ones(4, 2)}, "ep_world_size must be one of 16, 32"),
    ({"shared_expert_rank_num": 1}, "dedicated shared-expert ranks is not modelled"),
]


def test_dispatch_limits_on_a3(tmp_path: Path) -> None:
    cases = [({"changes": {-1: change}, "hidden": 1024, "a2": False}, text) for change, text in A3_LOCAL]
    every_case(tmp_path, "A3", cases)


def test_window_floor_is_enforced(tmp_path: Path) -> None:
    errors = failures(tmp_path, changes={}, buffer_mb=3)
    same_everywhere(errors, "HCCL_BUFFSIZE must be at least 5 MB for 4 tokens per rank, got 3 MB")


COMBINE = [
    ({"expand_scales": None}, "expand_scales must be given on A2"),
    ({"expert_scales": torch.ones(4, 2).half()}, "expert_scales must be float32"),
    ({"comm_quant_mode": 2}, "comm_quant_mode 2 needs hierarchy on A2"),
    ({"shared_expert_x": torch.zeros(4, 64, dtype=torch.bfloat16)}, "shared_expert_x is not supported on A2"),
    ({"expand_x": torch.zeros(64, 64, dtype=torch.int8)}, "expand_x must be bfloat16 or float16, got int8"),
    ({"changed assist": True}, "assist_info_for_combine must be what dispatch returned"),
    ({"other ids": True}, "must return the"),
    ({"ep_send_counts": torch.arange(8, 0, -1).int()}, "ep_send_counts must be what dispatch returned"),
]


def test_ids_that_change_between_dispatch_and_combine(tmp_path: Path) -> None:
    errors = failures(tmp_path, changes={}, combine_changes={1: {"other ids": True}})
    assert any("must return the" in str(error) for error in errors)
    assert all("must" in str(error) for error in errors)


def test_combine_limits(tmp_path: Path) -> None:
    every_case(tmp_path, "A2", [({"changes": {}, "combine_changes": {-1: change}}, text) for change, text in COMBINE])


def sizes(**changes: Any) -> Sizes:
    base: dict[str, Any] = {
        "op": "op",
        "version": 2,
        "soc": "A3",
        "algorithm": "fullmesh_v1",
        "batch": 64,
        "hidden": 2048,
        "top_k": 8,
        "experts": 128,
        "ranks": 16,
    }
    return Sizes(**(base | changes))


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ({"version": 1, "soc": "A2", "algorithm": "fullmesh", "ranks": 8}, "ep_world_size must be one of 16, 32, 64"),
        (
            {"version": 1, "soc": "A2", "algorithm": "fullmesh", "experts": 400},
            r"experts per rank must be in \[1, 24\]",
        ),
        ({"version": 1, "soc": "A2", "algorithm": "fullmesh", "experts": 528}, r"moe_expert_num must be in \[1, 512\]"),
        ({"version": 1, "hidden": 7168, "top_k": 9}, r"top-k must be in \[1, 8\] on A3 \(version 1\)"),
        ({"version": 1, "hidden": 4096}, "hidden size must be one of 7168"),
        ({"version": 1, "hidden": 7168, "ranks": 4}, "ep_world_size must be one of 8, 16"),
        ({"soc": "A2", "algorithm": "fullmesh", "ranks": 12}, "ep_world_size must be one of 2, 3"),
        ({"soc": "A2", "algorithm": "fullmesh", "top_k": 17}, r"top-k must be in \[1, 16\]"),
        ({"soc": "A2", "algorithm": "hierarchy", "batch": 513}, r"batch size per rank must be in \[1, 512\]"),
        ({"soc": "A2", "algorithm": "hierarchy", "experts": 528}, r"moe_expert_num must be in \[1, 512\]"),
        ({"batch": 513}, r"batch size per rank must be in \[1, 512\] on A3 \(fullmesh_v1\), got 513"),
        ({"batch": 0}, r"batch size per rank must be in \[1, 512\]"),
        ({"algorithm": "fullmesh_v2", "batch": 257}, r"batch size per rank must be in \[1, 256\]"),
        ({"algorithm": "fullmesh_v2", "top_k": 13}, r"top-k must be in \[1, 12\]"),
        ({"ranks": 1, "experts": 8}, r"ep_world_size must be in \[2, 768\]"),
        ({"ranks": 769, "experts": 769}, r"ep_world_size must be in \[2, 768\]"),
        ({"algorithm": "hierarchy", "ranks": 24}, "ep_world_size must be one of 16, 32"),
        ({"algorithm": "hierarchy", "experts": 400}, r"experts per rank must be in \[1, 24\]"),
        ({"algorithm": "hierarchy", "hidden": 7200}, r"hidden size must be in \[1, 7168\]"),
        ({"experts": 120}, "moe_expert_num must be a multiple of EP 16"),
        ({"experts": 0}, "moe_expert_num must be positive"),
    ],
)
def test_documented_sizes(case: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=f"^op: {text}"):
        check_sizes(sizes(**case))


def test_legal_sizes() -> None:
    check_sizes(sizes())
    check_sizes(sizes(version=1, hidden=7168))
    for algorithm in ("fullmesh", "hierarchy"):
        check_sizes(sizes(soc="A2", algorithm=algorithm))
        check_sizes(sizes(version=1, soc="A2", algorithm=algorithm))
    for ranks in (2, 3, 8, 192, 384):
        check_sizes(sizes(soc="A2", algorithm="fullmesh", ranks=ranks, experts=2 * ranks, top_k=4))


@pytest.mark.parametrize(
    ("case", "batches"),
    [
        # Megabytes worked out by hand from the documented formulas, K = 8.
        ({"hidden": 2048, "experts": 128}, {64: 76, 128: 152, 256: 304, 512: 608}),
        ({"hidden": 4096, "experts": 128}, {64: 144, 128: 288, 256: 576, 512: 1152}),
        ({"hidden": 7168, "experts": 256}, {64: 478, 128: 956, 256: 1912, 512: 3824}),
        ({"soc": "A2", "algorithm": "fullmesh", "ranks": 8}, {64: 36, 128: 68, 256: 132}),
        ({"soc": "A2", "algorithm": "fullmesh", "ranks": 16}, {64: 68, 128: 132, 256: 260}),
        (
            {"soc": "A2", "algorithm": "fullmesh", "hidden": 7168, "experts": 256},
            {64: 228, 128: 452, 256: 900},
        ),
    ],
)
def test_window_floors(case: dict[str, Any], batches: dict[int, int]) -> None:
    for batch, megabytes in batches.items():
        assert -(-window_floor(sizes(**case), batch) // MIB) == megabytes


def test_the_empty_algorithm_of_a2_follows_the_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_algorithm("op", "A2", 2, "", dispatch=True) == "fullmesh"
    monkeypatch.setenv("HCCL_INTRA_PCIE_ENABLE", "1")
    monkeypatch.setenv("HCCL_INTRA_ROCE_ENABLE", "0")
    assert resolve_algorithm("op", "A2", 2, "", dispatch=True) == "hierarchy"
    assert resolve_algorithm("op", "A3", 2, "", dispatch=False) == "fullmesh_v1"
    with pytest.raises(RuntimeError, match="comm_alg must be one of"):
        resolve_algorithm("op", "A3", 2, "fullmesh_v2", dispatch=False)
