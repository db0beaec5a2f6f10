# SPDX-License-Identifier: Apache-2.0
"""Every communication method gives the result of a plain float64 loop over the full weights, on every grid.

Real processes on virtual devices, one world per size; the ranks compare their own rows and report the largest error,
relative to the largest entry of the reference. Poisoned rows (NaN, ids out of range) would show as NaN or as an error
of the strict operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .cases import Case, Grid, a2_cases, all_cases, sabotaged_cases, v1_cases
from .world import World

# float types: rounding of the inner products' results and of the partial sums; W8A8: 8-bit activations, twice.
TOLERANCE = {"bfloat16": 0.02, "float16": 0.003, "float32": 1e-5}
TOLERANCE_W8A8 = 0.03

WORLDS = {
    ("A3", 2): all_cases(2),
    ("A3", 4): all_cases(4),
    ("A3", 8): all_cases(8) + v1_cases(),
    ("A2", 4): a2_cases(),
}


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    """Of eight ranks, which take half of the time, the default run keeps one layout and the version 1 operators."""
    kept = case.grid in (Grid(4, 2), Grid(8, 1)) and (case.grid.tp > 1 or case.operator_version == 1)
    return [] if case.grid.world < 8 or kept else [pytest.mark.slow]


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
        pytest.param(*key, case, id=f"{key[0]}-{case}", marks=_marks(case))
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


def _tolerance(case: Case) -> float:
    return TOLERANCE_W8A8 if case.quantized else TOLERANCE[case.dtype]
