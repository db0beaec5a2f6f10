# SPDX-License-Identifier: Apache-2.0
"""Packed int4 weights are looked for in vLLM where they are served, and on no other release."""

from __future__ import annotations

import pytest

from vllm_ascend_patch.releases import packed_int4


@pytest.mark.parametrize(
    ("release", "served"), [("0.33.0", True), ("0.32.0", True), ("0.31.0", False), ("0.19.1", False), (None, False)]
)
def test_the_releases_are_those_of_the_patch(release: str | None, served: bool) -> None:
    """vLLM 0.17 to 0.19 have the module of such kernels and no way to register one: a worker that tried could not start."""
    assert packed_int4.served("W4A16", release) is served
