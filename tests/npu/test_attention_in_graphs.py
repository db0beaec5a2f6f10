# SPDX-License-Identifier: Apache-2.0
"""Attention inside a graph: replays follow the step's lengths, and rows without a request neither read nor write others'."""

from __future__ import annotations

from tests.support.installed import HAS_LATENT_ATTENTION
from tests.support.processes import result_of, under_virtual_npu


def test_replays_equal_eager_calls_over_poisoned_memory() -> None:
    """Two layouts of the operator, and latent attention; one token per request and several; batches grow, shrink, end."""
    found = result_of(under_virtual_npu("-m", "tests.npu.attention_in_graphs"))
    latent = {"latent, 1", "latent, 3"} if HAS_LATENT_ATTENTION else set()
    assert set(found) == {"64, 1", "64, 3", "128, 1", "128, 3"} | latent
    for form, steps in found.items():
        assert len(steps) == 6
        for number, step in enumerate(steps):
            assert step["equal"], (form, number)
            assert step["finite"], (form, number)
            assert step["padding"] == 0, (form, number)
            assert step["written"] == step["wanted"], (form, number)
