# SPDX-License-Identifier: Apache-2.0
"""Graphs with collectives in them, over real processes."""

import pytest

from tests.support.processes import result_of, under_virtual_npu
from tests.support.ranks import run_ranks, values_of

from . import graph_checks

pytestmark = pytest.mark.usefixtures("npu")


def test_collectives_run_again_at_every_replay() -> None:
    outcomes = run_ranks(graph_checks.collectives, 2, group=None, start="forkserver", together=True, timeout=100)
    for value in values_of(outcomes):
        assert set(value) == {"1", "2"}


def test_dispatch_and_combine_run_again_at_every_replay() -> None:
    found = under_virtual_npu("-m", "tests.virtual_npu.graph_checks", soc="A3", devices=2, seconds=120)
    assert result_of(found) == [[4, 1], [4, 2]]
