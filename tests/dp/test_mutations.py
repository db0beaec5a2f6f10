# SPDX-License-Identifier: Apache-2.0
"""Whoever breaks a rule of the step sync is told: each mutation makes a check of this folder fail. See ``mutations.py``."""

from __future__ import annotations

import re

import pytest

from tests.support.installed import needs_one_coordination
from tests.support.processes import under_virtual_npu

pytestmark = needs_one_coordination

# mutation, check, what the check says
EXPECTED = {
    "no_dummy_run": ("run_fuzz", "RankMissingError|StepMismatchError|RankFailedError"),
    "no_sync_in_eager": ("run_fuzz", "RankMissingError|StepMismatchError|RankFailedError|decided|collective"),
    "drafters_not_foreseen": ("run_fuzz", "instead of 1 collective"),
    "local_count_for_the_moe_choice": ("run_moe_choice", "StepVector"),
}


@pytest.fixture(scope="module")
def output() -> str:
    return under_virtual_npu("-m", "tests.dp.mutations", "20261", seconds=200).stdout


@pytest.mark.parametrize("mutation", EXPECTED)
def test_a_mutation_is_caught(mutation: str, output: str) -> None:
    check, message = EXPECTED[mutation]
    assert re.search(rf"^CAUGHT {mutation} by {check}: .*({message})", output, re.MULTILINE), output[-4000:]
