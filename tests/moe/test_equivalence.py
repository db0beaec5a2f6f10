# SPDX-License-Identifier: Apache-2.0
"""Every communication method gives the result of a plain float64 loop over the full weights, on every grid.

Real processes on virtual devices, one world per size; the ranks compare their own rows and report the largest error,
relative to the largest entry of the reference. Poisoned rows (NaN, ids out of range) would show as NaN or as an error
of the strict operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from .cases import Case, Grid, a2_cases, all_cases, by_default, sabotaged_cases, v1_cases
from .world import World

# float types: rounding of the inner products' results and of the partial sums; W8A8: 8-bit activations, twice.
TOLERANCE = {"bfloat16": 0.02, "float16": 0.003, "float32": 1e-5}
TOLERANCE_W8A8 = 0.03
UNIT_ROUNDOFF = {"bfloat16": 2**-9, "float16": 2**-12}  # of one rounding, relative to what is rounded

WORLDS = {
    ("A3", 8): all_cases(8) + v1_cases(),
    ("A3", 4): all_cases(4),
    ("A2", 4): a2_cases(),
    ("A3", 2): all_cases(2),  # the last, which the tests below go on with
}


@pytest.fixture(scope="module")
def world_of() -> Iterator[Callable[[str, int], World]]:
    """One world at a time: the last one is kept until another is asked for."""
    running: list[World] = []

    def get(soc: str, size: int) -> World:
        if running and (running[0].soc, running[0].size) != (soc, size):
            running.pop().close()
        if not running:
            running.append(World(size, soc))
        return running[0]

    yield get
    for world in running:
        world.close()


@pytest.mark.parametrize(
    ("soc", "size", "case"),
    [
        pytest.param(*key, case, id=f"{key[0]}-{case}", marks=[] if by_default(key[0], case) else pytest.mark.slow)
        for key, cases in WORLDS.items()
        for case in cases
    ],
)
def test_method_gives_the_complete_sum_over_all_experts(
    world_of: Callable[[str, int], World], soc: str, size: int, case: Case
) -> None:
    assert world_of(soc, size).run(case) <= _tolerance(case)


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case}-{case.quantized}") for case in sabotaged_cases()])
def test_the_comparison_notices_what_is_wrong_on_purpose(world_of: Callable[[str, int], World], case: Case) -> None:
    assert world_of("A3", 2).run(case) > 2 * _tolerance(case)


@pytest.mark.parametrize(("dtype", "roundings"), [("bfloat16", 1), ("float16", 2)])
def test_what_the_exchange_itself_rounds_is_bounded(
    world_of: Callable[[str, int], World], dtype: str, roundings: int
) -> None:
    """Partial sums in the model's dtype, and router weights unless that is bf16: more than AllGather, which sums once."""
    case = Case("rounding", Grid(2, 1), "alltoall", tokens=(40, 30), top_k=8, dtype=dtype)
    world = world_of("A3", 2)
    exact_weights = world.run(replace(case, method="allgather"))
    rounded = world.run(case)
    assert rounded <= exact_weights + roundings * UNIT_ROUNDOFF[dtype]


@pytest.mark.slow  # a world of its own
@pytest.mark.parametrize(("dtype", "roundings"), [("bfloat16", 2), ("float16", 3)])
def test_what_a_second_level_rounds_is_bounded(
    world_of: Callable[[str, int], World], dtype: str, roundings: int
) -> None:
    """The sum that a relay returns is rounded once more."""
    grid = Grid(4, 1, hosts=(2, 2))
    case = Case("rounding", grid, "hierarchical", tokens=(40, 30), top_k=8, dtype=dtype)
    world = world_of("A3", 4)
    exact_weights = world.run(replace(case, method="allgather"))
    assert world.run(case) <= exact_weights + roundings * UNIT_ROUNDOFF[dtype]


def _tolerance(case: Case) -> float:
    return TOLERANCE_W8A8 if case.quantized else TOLERANCE[case.dtype]
