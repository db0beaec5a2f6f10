# SPDX-License-Identifier: Apache-2.0
"""As many sizes are captured as a device has streams for, and the largest is always among them."""

from __future__ import annotations

import pytest

from vllm_ascend_patch.core.graph_streams import DEVICE_STREAMS, KEPT_FREE, GraphKinds, sizes_within

DEFAULT = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
"""What vLLM captures by default for 512 tokens."""


@pytest.mark.parametrize(
    ("kinds", "streams"),
    [
        (GraphKinds(pieces=3, largest_whole=0, communicators=0), 3 * 51),
        (GraphKinds(pieces=3, largest_whole=128, communicators=0), 3 * 51 + 19),
        (GraphKinds(pieces=0, largest_whole=128, communicators=0), 19),
        (GraphKinds(pieces=49, largest_whole=128, communicators=2), (49 * 51 + 19) * 3),
    ],
)
def test_a_graph_takes_a_stream_and_one_per_communicator(kinds: GraphKinds, streams: int) -> None:
    assert len(DEFAULT) == 51
    assert kinds.streams(DEFAULT) == streams


@pytest.mark.parametrize("layers", [2, 24, 48, 61, 94, 400])
@pytest.mark.parametrize("communicators", [0, 1, 2])
def test_the_sizes_that_are_kept_fit_and_no_more_would(layers: int, communicators: int) -> None:
    kinds = GraphKinds(layers + 1, 128, communicators)
    kept = sizes_within(DEFAULT, kinds)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(DEFAULT)
    assert kept[-1] == 512
    assert len(kept) == 1 or kept[0] == 1
    assert kinds.streams(kept) <= DEVICE_STREAMS - KEPT_FREE or len(kept) == 1
    if len(kept) < len(DEFAULT):
        per_size = kinds.pieces * (1 + communicators)
        assert kinds.streams(kept) + 2 * per_size > DEVICE_STREAMS - KEPT_FREE


def test_all_sizes_of_a_small_model_and_the_given_order_of_streams_are_kept() -> None:
    assert sizes_within([8, 1, 4], GraphKinds(3, 8, 0)) == [1, 4, 8]
    assert sizes_within([1, 4, 8], GraphKinds(10, 0, 0), streams=20) == [1, 8]
    assert sizes_within([1, 4, 8], GraphKinds(10, 0, 0), streams=5) == [8]
    assert sizes_within([], GraphKinds(10, 0, 0)) == []
