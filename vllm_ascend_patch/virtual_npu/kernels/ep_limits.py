# SPDX-License-Identifier: Apache-2.0
"""The documented limits of dispatch and combine: sizes per SoC and algorithm, argument rules, HCCL window floors.

Pure checks of one rank's arguments; what ranks must agree on is ep_exchange.py's business. Numbers: op-plugin pages of
dispatch(_v2)/combine(_v2) and CANN's ops-transformer pages of DispatchV4/CombineV4. Where they differ from the mid-2025
pages the newest is followed (A2 full mesh takes EP 2 to 8; mid-2025 only 16 to 256).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from .limits import require

MIB = 1024 * 1024
DEFAULT_WINDOW_MB = 200  # HCCL_BUFFSIZE when it is not set


@dataclass(frozen=True)
class Sizes:
    """What the limits are about.

    Attributes:
        op: operator, for messages.
        version: 1 or 2.
        soc: "A2" or "A3".
        algorithm: resolved: "fullmesh" or "hierarchy" (A2); "fullmesh_v1", "fullmesh_v2" or "hierarchy" (A3).
        batch: tokens of this rank.
        hidden: H.
        top_k: K.
        experts: E over all ranks.
        ranks: EP.
    """

    op: str
    version: int
    soc: str
    algorithm: str
    batch: int
    hidden: int
    top_k: int
    experts: int
    ranks: int

    @property
    def local(self) -> int:
        """Experts per rank."""
        return self.experts // self.ranks


def resolve_algorithm(op: str, soc: str, version: int, comm_alg: str, *, dispatch: bool) -> str:
    """The algorithm behind a ``comm_alg`` argument."""
    if soc == "A2":
        require(
            op, comm_alg in ("", "fullmesh", "hierarchy"), "comm_alg must be '', fullmesh or hierarchy on A2", comm_alg
        )
        if comm_alg:
            return comm_alg
        pcie, roce = (
            os.environ.get(f"HCCL_INTRA_{wire}_ENABLE", default) for wire, default in (("PCIE", "0"), ("ROCE", "0"))
        )
        return "hierarchy" if pcie == "1" and roce == "0" else "fullmesh"
    allowed = ("", "fullmesh_v1", "fullmesh_v2", "hierarchy") if dispatch else ("", "hierarchy")
    require(op, comm_alg in allowed, f"comm_alg must be one of {list(allowed)} on A3", comm_alg)
    return comm_alg or "fullmesh_v1"


def _within(sizes: Sizes, name: str, value: int, low: int, high: int) -> None:
    where = f"on {sizes.soc} ({sizes.algorithm})" if sizes.version == 2 else f"on {sizes.soc} (version 1)"
    require(sizes.op, low <= value <= high, f"{name} must be in [{low}, {high}] {where}", value)


def _one_of(sizes: Sizes, name: str, value: int, allowed: Collection[int]) -> None:
    where = f"on {sizes.soc} ({sizes.algorithm})" if sizes.version == 2 else f"on {sizes.soc} (version 1)"
    shown = ", ".join(map(str, sorted(allowed)))
    require(sizes.op, value in allowed, f"{name} must be one of {shown} {where}", value)


def _multiple_of_32(sizes: Sizes, high: int) -> None:
    _within(sizes, "hidden size", sizes.hidden, 1, high)
    require(sizes.op, sizes.hidden % 32 == 0, "hidden size must be a multiple of 32", sizes.hidden)


def check_sizes(sizes: Sizes) -> None:
    """Batch, hidden size, top-k, expert and rank counts."""
    op = sizes.op
    require(op, sizes.experts > 0, "moe_expert_num must be positive", sizes.experts)
    legal = {
        (1, "A2"): _version_1_a2,
        (1, "A3"): _version_1_a3,
        (2, "A2"): _version_2_a2,
        (2, "A3"): _version_2_a3,
    }
    legal[sizes.version, sizes.soc](sizes)
    require(
        op, sizes.experts % sizes.ranks == 0, f"moe_expert_num must be a multiple of EP {sizes.ranks}", sizes.experts
    )
    require(op, sizes.top_k <= sizes.experts, f"top-k must be at most the {sizes.experts} experts", sizes.top_k)


def _version_1_a2(sizes: Sizes) -> None:
    _one_of(sizes, "ep_world_size", sizes.ranks, (16, 32, 64))
    _within(sizes, "moe_expert_num", sizes.experts, 1, 512)
    if sizes.algorithm != "hierarchy":
        _within(sizes, "experts per rank", sizes.local, 1, 24)
    _within(sizes, "batch size per rank", sizes.batch, 1, 256)
    _multiple_of_32(sizes, 7168)
    _within(sizes, "top-k", sizes.top_k, 1, 16)


def _version_1_a3(sizes: Sizes) -> None:
    _one_of(sizes, "ep_world_size", sizes.ranks, (8, 16, 32, 64, 128, 144, 256, 288))
    _within(sizes, "moe_expert_num", sizes.experts, 1, 512)
    _within(sizes, "batch size per rank", sizes.batch, 1, 512)
    _one_of(sizes, "hidden size", sizes.hidden, (7168,))
    _within(sizes, "top-k", sizes.top_k, 1, 8)


def _version_2_a2(sizes: Sizes) -> None:
    if sizes.algorithm == "hierarchy":
        _one_of(sizes, "ep_world_size", sizes.ranks, (16, 32, 64))
        _within(sizes, "moe_expert_num", sizes.experts, 1, 512)
        _within(sizes, "batch size per rank", sizes.batch, 1, 512)
        _multiple_of_32(sizes, 10240)
    else:
        _one_of(sizes, "ep_world_size", sizes.ranks, (2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 192, 256, 384))
        _within(sizes, "moe_expert_num", sizes.experts, 1, 1024)
        _within(sizes, "batch size per rank", sizes.batch, 1, 256)
        _multiple_of_32(sizes, 7168)
    _within(sizes, "top-k", sizes.top_k, 1, 16)


def _version_2_a3(sizes: Sizes) -> None:
    if sizes.algorithm == "hierarchy":
        _one_of(sizes, "ep_world_size", sizes.ranks, range(16, 257, 16))
        _within(sizes, "moe_expert_num", sizes.experts, 1, 512)
        _within(sizes, "experts per rank", sizes.local, 1, 24)
        _within(sizes, "batch size per rank", sizes.batch, 1, 256)
        _multiple_of_32(sizes, 7168)
        _within(sizes, "top-k", sizes.top_k, 1, 16)
        return
    _within(sizes, "ep_world_size", sizes.ranks, 2, 768)
    _within(sizes, "moe_expert_num", sizes.experts, 1, 1024)
    _within(sizes, "experts per rank times EP", sizes.local * sizes.ranks, 1, 2048)
    second = sizes.algorithm == "fullmesh_v2"
    _within(sizes, "batch size per rank", sizes.batch, 1, 256 if second else 512)
    _within(sizes, "hidden size", sizes.hidden, 1024, 8192)
    _within(sizes, "top-k", sizes.top_k, 1, 12 if second else 16)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def window_floor(sizes: Sizes, largest_batch: int) -> int:
    """Bytes of HCCL window that one rank needs; ``largest_batch`` is the largest of all ranks."""
    batch, hidden, k, ranks = largest_batch, sizes.hidden, sizes.top_k, sizes.ranks
    row = 2 * hidden
    if sizes.soc == "A2":
        if sizes.algorithm == "hierarchy":
            slots = sizes.experts + -(-ranks // 4)
            return slots * _up(batch * (row + 16 * _up(k, 8)), 512) + 8 * MIB
        return 2 * (batch * ranks * min(sizes.local, k) * row + 2 * MIB)
    if sizes.version == 1:
        return 2 * batch * 2 * (hidden + 128) * (ranks * sizes.local + k + 1) + 2 * MIB
    if sizes.algorithm == "hierarchy":
        return sizes.experts * batch * (row + 16 * _up(k, 8)) + 404 * MIB
    packed = _up(row, 32) + 64
    slot = -(-packed // 480) * 512 if sizes.algorithm == "fullmesh_v2" else _up(packed, 512)
    return 2 * (sizes.local * batch * ranks * slot + k * batch * _up(row, 512))


def window_megabytes(op: str) -> int:
    """``HCCL_BUFFSIZE`` of this process, in MB."""
    text = os.environ.get("HCCL_BUFFSIZE", str(DEFAULT_WINDOW_MB))
    require(op, text.isdigit() and int(text) > 0, "HCCL_BUFFSIZE must be a positive number of MB", repr(text))
    return int(text)


def check_window(sizes: Sizes, largest_batch: int, megabytes: int) -> None:
    """The HCCL window must hold what every rank may send in one call."""
    floor = -(-window_floor(sizes, largest_batch) // MIB)
    limit = f"HCCL_BUFFSIZE must be at least {floor} MB for {largest_batch} tokens per rank"
    require(sizes.op, megabytes >= floor, limit, f"{megabytes} MB")
