# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine across processes: every row proves its origin, identity experts return the input, limits hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_ascend_patch.virtual_npu.kernels.ep_limits import MIB, Sizes, check_sizes, resolve_algorithm, window_floor

from . import audit, ep_scenarios, world


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.timeout(600)
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
    world.succeed(size, "round_trips", cases=cases)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.timeout(600)
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
    world.succeed(size, "round_trips", "A3", cases=cases)


def test_prefix_sums_of_expert_token_numbers(tmp_path: Path) -> None:
    by_rank = world.succeed(2, "token_numbers")
    assert all(first <= second for first, second in by_rank)
    assert sum(sums[-1] for sums in by_rank) == 2 * 4 * 2


def test_smooth_factors_per_expert(tmp_path: Path) -> None:
    world.succeed(2, "smooth_factors")


def failures(tmp_path: Path, size: int = 2, soc: str = "A2", **arguments: Any) -> list[str | None]:
    return [error for error, _ in world.run(size, "broken", soc, **arguments)]


def same_everywhere(errors: list[str | None], wanted: str | tuple[str, ...]) -> None:
    texts = (wanted,) * len(errors) if isinstance(wanted, str) else wanted
    for rank, (error, text) in enumerate(zip(errors, texts, strict=True)):
        assert error is not None, f"rank {rank} succeeded where expected: {text}"
        assert text in error, f"rank {rank}: {error}"


Cases = list[tuple[dict[str, Any], str | tuple[str, ...]]]  # a text for all ranks, or one for each
Sites = set[tuple[str, int]]


def every_case(folder: Path, soc: str, cases: Cases, **arguments: Any) -> Sites:
    """Every case in one world of two; each must fail on both ranks with its text, and leave the group usable.

    Returns the checks that failed.
    """
    wanted = [*cases, ({"changes": {}, **{k: v for k, v in cases[0][0].items() if k in ("hidden", "a2")}}, "")]
    folder.mkdir()
    results = world.succeed(2, "broken_many", soc, cases=[case for case, _ in wanted], **arguments)
    by_rank = [errors for errors, _ in results]
    for (_, text), *errors in zip(cases, *(found[:-1] for found in by_rank), strict=True):
        same_everywhere(errors, text)
    assert [found[-1] for found in by_rank] == [None, None]
    return set.union(*(failed for _, failed in results))


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
    assert "must not occur twice in one row of expert_ids, got 0 in row 0" in str(errors[1])
    assert "rank 1 must accept its arguments" in str(errors[0])


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
    (
        {"expert_ids": torch.zeros(4, 2, dtype=torch.int32)},
        "must not occur twice in one row of expert_ids, got 0 in row 0",
    ),
    ({"group_ep": "g" * 128}, "group_ep must have 1 to 127 characters"),
    ({"ep_rank_id": 2}, "ep_rank_id must be in [0, 2), got 2"),
    ({"tp_rank_id": 1}, "tp_rank_id must be 0"),
    ({"y_dtype": 1}, "argument y_dtype is not modelled"),
    ({"x": torch.zeros(256, dtype=torch.bfloat16)}, "x must have 2 dimension"),
    ({"expert_ids": torch.zeros(4, dtype=torch.int32)}, "expert_ids must have 2 dimension"),
    ({"expert_ids": torch.zeros(3, 2, dtype=torch.int32)}, "expert_ids must have shape [4, 2]"),
    ({"expert_scales": torch.ones(4, 3)}, "expert_scales must have shape"),
    ({"scales": torch.ones(8, 64).half(), "quant_mode": 2}, "scales must be float32"),
    ({"scales": torch.ones(7, 64), "quant_mode": 2}, "scales must have shape"),
    ({"performance_info": torch.zeros(2)}, "performance_info must be int64"),
    ({"performance_info": torch.zeros(3, dtype=torch.int64)}, "performance_info must have shape"),
    ({"x_active_mask": torch.ones(3, dtype=torch.bool)}, "x_active_mask must have shape [4]"),
    (
        {"x_active_mask": torch.ones(4, dtype=torch.bool), "comm_alg": "hierarchy"},
        "x_active_mask must be None with hierarchy on A2",
    ),
    ({"zero_expert_num": 1}, "zero experts is not modelled"),
]


A3_LOCAL = [
    ({"expert_scales": torch.ones(4, 2)}, "expert_scales must be None on A3 unless comm_alg is hierarchy"),
    ({"x": torch.zeros(4, 992, dtype=torch.bfloat16)}, "hidden size must be in [1024, 8192] on A3 (fullmesh_v1)"),
    ({"group_tp": "ep", "tp_world_size": 1}, "group_tp must differ from group_ep on A3"),
    ({"comm_alg": "fullmesh"}, "comm_alg must be one of"),
    ({"comm_alg": "hierarchy", "expert_scales": torch.ones(4, 2)}, "ep_world_size must be one of 16, 32"),
    ({"shared_expert_rank_num": 1}, "dedicated shared-expert ranks is not modelled"),
    ({"x_active_mask": torch.ones(4, 3, dtype=torch.bool)}, "x_active_mask must have shape [4, 2]"),
]

A3_COMBINE = [
    ({"expand_scales": torch.ones(64)}, "expand_scales must be None on A3 unless comm_alg is hierarchy"),
    ({"shared_expert_x": torch.zeros(4, 1024)}, "shared_expert_x must have dtype torch.bfloat16"),
    ({"shared_expert_x": torch.zeros(1024, dtype=torch.bfloat16)}, "shared_expert_x must have 2 or 3 dimension"),
    ({"shared_expert_x": torch.zeros(3, 1024, dtype=torch.bfloat16)}, "shared_expert_x must have shape"),
]


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
    ({"ep_send_counts": torch.arange(8)}, "ep_send_counts must be int32"),
    ({"ep_send_counts": torch.arange(7).int()}, "ep_send_counts must have at least 8 elements"),
    ({"assist_info_for_combine": torch.zeros(99)}, "assist_info_for_combine / expand_idx must be int32"),
    ({"assist_info_for_combine": torch.zeros(1).int()}, "assist_info_for_combine must be what dispatch returned"),
    ({"expert_scales": torch.ones(4, 3)}, "expert_scales must have shape"),
    ({"comm_quant_mode": 1}, "comm_quant_mode must be 0 or 2"),
    ({"elastic_info": torch.zeros(8)}, "elastic_info must be None"),
    ({"const_expert_num": 1}, "const experts is not modelled"),
    ({"ori_x": torch.zeros(4, 64)}, "argument ori_x is not modelled"),
    ({"expand_x": torch.zeros(64, dtype=torch.bfloat16)}, "expand_x must have 2 dimension"),
    ({"expert_ids": torch.zeros(4, dtype=torch.int32)}, "expert_ids must have 2 dimension"),
    ({"performance_info": torch.zeros(2)}, "performance_info must be int64"),
    ({"performance_info": torch.zeros(3, dtype=torch.int64)}, "performance_info must have shape"),
    (
        {"x_active_mask": torch.ones(4, dtype=torch.bool), "comm_alg": "hierarchy"},
        "x_active_mask must be None with hierarchy on A2",
    ),
]


def test_ids_that_change_between_dispatch_and_combine(tmp_path: Path) -> None:
    errors = failures(tmp_path, changes={}, combine_changes={1: {"other ids": True}})
    assert any("must return the" in str(error) for error in errors)
    assert all("must" in str(error) for error in errors)


MASKS = {r: {"x_active_mask": torch.ones(b, dtype=torch.bool), "global_bs": 8} for r, b in enumerate([4, 2])}
BATCHES: Cases = [
    ({"changes": MASKS, "batches": [4, 2]}, "batch sizes that differ between ranks exclude x_active_mask"),
    ({"changes": {}, "batches": [4, 2]}, "must be the largest times EP, 8, got 0"),
    ({"changes": {-1: {"global_bs": 16}}}, "global_bs with equal batches must be one of [0, 8], got 16"),
    ({"changes": {-1: {"global_bs": -1}}}, "global_bs must not be negative"),
    ({"changes": {}, "batches": [257, 257]}, "batch size per rank must be in [1, 256] on A2 (fullmesh), got 257"),
    ({"changes": {0: {"quant_mode": 2}}}, "same quant_mode must be equal on all ranks, got [2, 0] by rank"),
    ({"changes": {1: {"moe_expert_num": 16}}}, "moe_expert_num must be equal on all ranks, got [8, 16] by rank"),
    ({"changes": {1: {"global_bs": 8}}}, "global_bs must be equal on all ranks, got [0, 8] by rank"),
    ({"changes": {0: {"ep_rank_id": 1}, 1: {"ep_rank_id": 0}}}, "must be this process's rank in group_ep"),
    ({"changes": {1: {"quant_mode": 1}}}, ("rank 1 must accept its arguments", "quant_mode must be 0 or 2")),
    ({"changes": {1: {"version": 1}}}, ("rank 1 must make the same call as rank 0", "ep_world_size must be one of")),
]

RESERVED: Cases = [
    ({"activation_scale": torch.ones(1)}, "activation_scale is reserved and must be None"),
    ({"out_dtype": 1}, "out_dtype is reserved and must be 0"),
]


@pytest.mark.timeout(600)
def test_every_limit_of_dispatch_and_combine_is_tripped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local: Cases = [({"changes": {-1: change}}, text) for change, text in LOCAL]
    back: Cases = [({"changes": {}, "combine_changes": {-1: change}}, text) for change, text in COMBINE]
    reserved: Cases = [
        ({"changes": {}, "combine_changes": {-1: change}, "version": 12}, text) for change, text in RESERVED
    ]
    a3 = {"hidden": 1024, "a2": False}
    a3_local: Cases = [({"changes": {-1: change}, **a3}, text) for change, text in A3_LOCAL]
    a3_back: Cases = [({"changes": {}, "combine_changes": {-1: change}, **a3}, text) for change, text in A3_COMBINE]
    failed = every_case(tmp_path / "a2", "A2", [*local, *BATCHES, *back, *reserved])
    failed |= every_case(tmp_path / "a3", "A3", [*a3_local, *a3_back])

    results = world.succeed(8, "version_1", "A3", buffer_mb=800)
    for (legal, assist, mask), tripped in results:
        assert legal is None
        assert "expand_idx must be what dispatch returned" in str(assist)
        assert "x_active_mask must be None in version 1" in str(mask)
        failed |= tripped

    modules = ep_scenarios.ep_modules()
    recorder = audit.Recorder(modules, monkeypatch.setattr)
    for case, text in SIZES:
        with pytest.raises(RuntimeError, match=f"^op: {text}"):
            modules[-1].check_sizes(sizes(**case))
    with pytest.raises(RuntimeError, match="HCCL_BUFFSIZE must be at least 76 MB for 64 tokens per rank, got 75 MB"):
        modules[-1].check_window(sizes(), 64, 75)
    monkeypatch.setenv("HCCL_BUFFSIZE", "200MB")
    with pytest.raises(RuntimeError, match="HCCL_BUFFSIZE must be a positive number of MB, got '200MB'"):
        modules[-1].window_megabytes("op")
    never = audit.never_tripped(modules, failed | recorder.failed)
    assert not never, "no test trips\n" + "\n".join(never)


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


SIZES: Cases = [
    ({"top_k": 9, "experts": 8, "ranks": 8}, "top-k must be at most the 8 experts"),
    ({"soc": "A2", "algorithm": "fullmesh", "hidden": 33}, "hidden size must be a multiple of 32"),
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
]


@pytest.mark.parametrize(("case", "text"), SIZES)
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
