# SPDX-License-Identifier: Apache-2.0
"""Attention inside a graph: replays follow the step's lengths, and rows without a request neither read nor write others'."""

from __future__ import annotations

import pytest

from tests.support.installed import HAS_LATENT_ATTENTION
from tests.support.processes import result_of, under_virtual_npu

FORMS = {(64, None, False): "TND", (128, None, False): "TND"}
"""Head size, window, sinks, and the layout that serves them."""
NEWER = {(64, 4, False): "TND", (64, None, True): "TND", (128, 4, True): "TND"}


@pytest.mark.parametrize(
    ("cann", "forms"), [("9.1", FORMS | NEWER), ("8.5", FORMS | {(64, None, False): "BSND"})], ids=["9.1", "8.5"]
)
def test_replays_equal_eager_calls_over_poisoned_memory(
    cann: str, forms: dict[tuple[int, int | None, bool], str]
) -> None:
    """Two layouts of the operator, windows and sinks, latent attention, one token per request and several; batches
    grow, shrink, and are empty. The eager calls are held against a formula."""
    found = result_of(under_virtual_npu("-m", "tests.npu.attention_in_graphs", environment={"VIRTUAL_NPU_CANN": cann}))
    layouts = {str((*form, tokens)): layout for form, layout in forms.items() for tokens in (1, 3)}
    if HAS_LATENT_ATTENTION:
        layouts |= {"latent, 1": "BSND", "latent, 3": "TND"}
    assert set(found) == set(layouts)
    for form, steps in found.items():
        assert len(steps) == 6
        for number, step in enumerate(steps):
            assert step["layout"] == layouts[form]
            assert step["right"], (form, number)
            assert step["equal"], (form, number)
            assert step["finite"], (form, number)
            assert step["padding"] == 0, (form, number)
            assert step["written"] == step["wanted"], (form, number)
