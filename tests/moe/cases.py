# SPDX-License-Identifier: Apache-2.0
"""The conditions under which every communication method has to give the reference's result. Data only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Grid:
    """A parallel layout of ``dp * tp`` ranks."""

    dp: int
    tp: int
    expert_parallel: bool = True
    sequence_parallel: bool = False
    hosts: tuple[int, ...] = ()  # ranks of each

    @property
    def world(self) -> int:
        return self.dp * self.tp

    @property
    def experts_over(self) -> int:
        return self.world if self.expert_parallel else 1

    def __str__(self) -> str:
        kind = "sp" if self.sequence_parallel else "ep" if self.expert_parallel else "sliced"
        hosts = "".join(f"on{ranks}" for ranks in self.hosts)
        return f"dp{self.dp}tp{self.tp}{kind}{hosts}"


@dataclass(frozen=True)
class Case:
    """One layer on one grid.

    ``tokens`` are rows per DP rank, cyclically; ``active`` the real ones among them (None: all). Rows past them are
    poisoned: NaN hidden states and weights, ids that are out of range or repeated.
    """

    name: str
    grid: Grid
    method: str
    tokens: tuple[int, ...] = (5,)
    active: tuple[int, ...] | None = None
    top_k: int = 4
    logical_experts: int = 16
    redundant: int = 0
    routing: str = "random"
    dtype: str = "bfloat16"
    quantized: bool = False
    fused: bool = False  # int8 weights of the first product in FRACTAL_NZ
    int4: bool = False  # weights in int4; rows in int8 where quantized, too
    group_size: int = 0  # inputs that share a scale of int4 weights beside float rows; 0: all
    intermediate: int = 64
    hidden: int = 1024
    captured: bool = False
    operator_version: int = 2
    seed: int = 0
    activation: str = "silu"
    limit: float | None = None  # of the activation, where it has none of its own
    alpha: float | None = None
    biased: bool = False
    weight_on_input: bool = False
    shared: bool = False  # a shared expert takes every token besides, as upstream computes it next to the routed ones
    sabotage: str = ""  # what is wrong on purpose, see SABOTAGES

    @property
    def tokens_per_dp_rank(self) -> tuple[int, ...]:
        return tuple(self.tokens[r % len(self.tokens)] for r in range(self.grid.dp))

    @property
    def active_per_dp_rank(self) -> tuple[int, ...]:
        active = self.tokens if self.active is None else self.active
        return tuple(active[r % len(active)] for r in range(self.grid.dp))

    @property
    def physical_experts(self) -> int:
        return self.logical_experts + self.redundant

    def __str__(self) -> str:
        return f"{self.grid}-{self.method}-{self.name}"


SABOTAGES = {
    "one-weight-missing": "the first rank's first token loses an expert",
    "poison-counts-as-a-token": "one poisoned row is said to be a token",
    "padding-comes-back": "a row without a token gets a value",
    "shared-twice": "the shared expert is added once more",
}


def conditions(grid: Grid, method: str) -> Iterator[Case]:
    """Every condition for one method on one grid."""
    base = Case("even", grid, method)
    yield base
    yield replace(base, name="uneven", tokens=(7, 2, 11, 1))
    yield replace(base, name="one-rank-has-none", tokens=(6, 0))
    yield replace(base, name="one-token-in-all", tokens=(0, 1) if grid.dp > 1 else (1,))
    yield replace(base, name="idle-rank", tokens=(4, 1), active=(4, 0))
    yield replace(base, name="all-idle", tokens=(3,), active=(0,))
    yield replace(base, name="padded", tokens=(8, 8), active=(5, 3))
    yield replace(base, name="not-divisible-by-tp", tokens=(grid.tp * 2 + 1, grid.tp - 1 or 1))
    yield replace(base, name="one-expert-takes-all", routing="one-expert", top_k=1)
    yield replace(base, name="last-rank-takes-all", routing="last-experts", top_k=2)
    if grid.expert_parallel:
        local = 16 // grid.world
        yield replace(base, name="one-rank-per-token", routing="one-rank", top_k=min(4, local))
        yield replace(base, name="a-rank-per-expert", routing="each-on-another", top_k=min(4, grid.world))
    if grid.hosts:
        yield replace(base, name="one-host-per-token", routing="one-host", tokens=(5, 9))
    yield replace(base, name="redundant-experts", logical_experts=12, redundant=4)
    yield replace(base, name="shared", shared=True, tokens=(6, 3))
    yield replace(base, name="shared-padded-idle", shared=True, tokens=(8, 1), active=(5, 0))
    yield replace(base, name="fp16", dtype="float16", tokens=(6, 3))
    yield replace(base, name="biases", biased=True, tokens=(8, 3), active=(5, 0))
    yield replace(base, name="gpt-oss", biased=True, activation="swigluoai", tokens=(6, 3))
    yield from _other_experts(base)
    for top_k in (1, 2, 3, 8):
        yield replace(base, name=f"top-{top_k}", top_k=top_k, tokens=(6, 3), seed=top_k)
    if method != "mc2":
        yield replace(base, name="fp32", dtype="float32", tokens=(6, 3))
        yield replace(base, name="fp32-top-8-padded", dtype="float32", top_k=8, tokens=(9, 4), active=(7, 1))
        if grid.expert_parallel:
            yield replace(base, name="experts-not-even", logical_experts=16 + 1, tokens=(6, 3))
    if method in ("allgather", "mc2"):
        captured = replace(base, name="captured-with-mask", captured=True, tokens=(8,), active=(5, 0))
        yield captured
        yield replace(captured, name="captured-w8a8", quantized=True)
        yield replace(captured, name="captured-w8a8-fused", quantized=True, fused=True, intermediate=32 * grid.world)
    if method in ("alltoall", "hierarchical"):
        older = replace(base, name="older-operators", operator_version=1, tokens=(7, 2, 11, 1), active=(5, 2, 0, 1))
        yield older
        yield replace(older, name="older-operators-w8a8", quantized=True)
    yield replace(base, name="w8a8", quantized=True, tokens=(6, 3))
    size = 256 * (1 if grid.expert_parallel else grid.world)  # per rank a multiple of 256
    yield replace(base, name="w4a8", quantized=True, int4=True, intermediate=size, tokens=(6, 3), active=(6, 1))
    sixteen = replace(base, name="w4a16", int4=True, group_size=32, intermediate=32 * grid.world, tokens=(6, 3))
    yield sixteen
    if grid.world == 2:
        yield replace(sixteen, name="w4a16-fp16-channel", dtype="float16", group_size=0, active=(6, 1))
        yield replace(
            sixteen, name="w4a16-swigluoai-redundant", activation="swigluoai", logical_experts=12, redundant=4
        )
    yield replace(base, name="w8a8-fp16", quantized=True, dtype="float16", tokens=(6, 3))
    yield replace(base, name="w8a8-padded-idle", quantized=True, tokens=(8, 1), active=(5, 0))
    fused = replace(base, name="w8a8-fused", quantized=True, fused=True, intermediate=32 * grid.world, tokens=(6, 0))
    yield fused
    yield replace(fused, name="w8a8-fused-fp16-padded-idle", dtype="float16", tokens=(8, 1), active=(5, 0))
    yield replace(base, name="w8a8-redundant-shared", quantized=True, shared=True, logical_experts=12, redundant=4)
    yield replace(base, name="w8a8-odd-intermediate", quantized=True, intermediate=grid.world * 20, tokens=(6, 3))


def _other_experts(base: Case) -> Iterator[Case]:
    """Activations besides SwiGLU, biases in float16, and weights on the input: what no method sees, and all have to give."""
    base = replace(base, tokens=(6, 3))
    yield replace(
        base, name="gpt-oss-fp16-redundant", dtype="float16", biased=True, activation="swigluoai", redundant=4
    )
    yield replace(base, name="clamped", limit=0.5)
    yield replace(base, name="clamped-halves", activation="swigluoai_uninterleave", limit=0.5, alpha=1.2)
    for activation in (
        "swiglustep",
        "gelu",
        "gelu_tanh",
        "silu_no_mul",
        "gelu_no_mul",
        "gelu_tanh_no_mul",
        "relu2_no_mul",
    ):
        yield replace(base, name=activation.replace("_", "-"), activation=activation)
    yield replace(base, name="relu2-biases-fp16", activation="relu2_no_mul", biased=True, dtype="float16")
    yield replace(base, name="weight-on-input", weight_on_input=True, top_k=1, biased=True)
    for activation in ("swigluoai", "swiglustep", "gelu_tanh", "relu2_no_mul"):
        yield replace(base, name=f"w8a8-{activation}".replace("_", "-"), activation=activation, quantized=True)


def _others(grid: Grid, method: str) -> list[Case]:
    return list(_other_experts(Case("even", grid, method)))


def grids(world: int) -> list[Grid]:
    """The layouts of a world size."""
    pairs = [(dp, world // dp) for dp in (1, 2, 4, 8) if world % dp == 0 and (world < 8 or dp in (2, 4, 8))]
    plain = [Grid(dp, tp) for dp, tp in pairs]
    sequence_parallel = [Grid(dp, tp, sequence_parallel=True) for dp, tp in pairs if tp > 1 and dp > 1]
    sliced = [Grid(dp, tp, expert_parallel=False) for dp, tp in pairs if world < 8 or (dp, tp) == (4, 2)]
    return plain + sequence_parallel + sliced


def grids_over_hosts(world: int) -> list[Grid]:
    """Hosts with equal and unequal parts of the ranks, and one that has a single rank."""
    if world == 4:
        equal = [Grid(4, 1, hosts=(2, 2)), Grid(2, 2, hosts=(2, 2)), Grid(2, 2, sequence_parallel=True, hosts=(2, 2))]
        return [*equal, Grid(4, 1, hosts=(3, 1))]
    return [Grid(8, 1, hosts=hosts) for hosts in ((4, 4), (2, 5, 1))] if world == 8 else []


def all_cases(world: int) -> list[Case]:
    """Every case of a world size: all methods where experts are distributed, AllGather also where they are sliced."""
    found: list[Case] = []
    for grid in grids(world):
        for method in ("allgather", "mc2", "alltoall") if grid.expert_parallel else ("allgather",):
            found += conditions(grid, method)
    for grid in grids_over_hosts(world):
        found += conditions(grid, "hierarchical")
    return found


def sabotaged_cases() -> list[Case]:
    """Cases whose results are wrong on purpose."""
    return [
        Case(
            sabotage,
            Grid(2, 1),
            method,
            tokens=(6, 3),
            active=(5, 3),
            top_k=8,
            shared=True,
            sabotage=sabotage,
            quantized=quantized,
        )
        for method in ("allgather", "mc2", "alltoall")
        for quantized in (False, True)
        for sabotage in SABOTAGES
    ]


def v1_cases() -> list[Case]:
    """MC2 with the version 1 operators, at the smallest sizes that they are documented for on A3."""
    base = Case("v1", Grid(8, 1), "mc2", hidden=7168, intermediate=64, operator_version=1)
    base = replace(base, logical_experts=8, tokens=(3, 1))
    return [
        base,
        replace(base, name="v1-padded-idle", tokens=(3, 1), active=(2, 0)),
        replace(base, name="v1-w8a8", quantized=True),
        replace(base, name="v1-split-over-tp", grid=Grid(4, 2)),
    ]


def a2_cases() -> list[Case]:
    """MC2 by A2's argument rules, world size 4; the other methods do not know the generation."""
    layouts = (Grid(4, 1), Grid(2, 2), Grid(2, 2, sequence_parallel=True))
    return [case for grid in layouts for case in conditions(grid, "mc2")]


# Conditions that reach every part of a method: sizes that differ, rows without a token, replicas, int8 rows.
_SHORT = (
    "uneven",
    "one-rank-per-token",
    "one-host-per-token",
    "a-rank-per-expert",
    "redundant-experts",
    "shared-padded-idle",
    "w8a8-padded-idle",
    "w8a8-fused",
)


def by_default(soc: str, case: Case) -> bool:
    """Whether a case runs in the default run: all conditions on two ranks and where four ranks are TP 2 x DP 2, a few on the
    other layouts and on eight ranks, and the version 1 operators."""
    grid = case.grid
    if case in _others(grid, case.method) and not (grid.world == 2 and grid.dp == 2 and case.method == "alltoall"):
        return False  # what no method sees: with one method, and the two that follow from biases with all
    both_ways = grid.dp == grid.tp == 2 and not grid.hosts
    if grid.expert_parallel and (grid.world == 2 or (both_ways and (grid.sequence_parallel or soc == "A2"))):
        return True
    if (
        grid.world == 8
        and not case.name.startswith("v1")
        and grid not in (Grid(4, 2), Grid(4, 2, sequence_parallel=True))
    ):
        return False
    return case.name in _SHORT or case.name.startswith("v1")
