# SPDX-License-Identifier: Apache-2.0
"""Where drafts are scheduled in turn, and in which words that is said."""

from __future__ import annotations

import pytest

from vllm_ascend_patch.releases.drafts import asynchronous_obstacle


@pytest.mark.parametrize("release", ["0.32.0", "0.33.0"])
def test_model_runner_v1_schedules_asynchronously(release: str) -> None:
    assert asynchronous_obstacle(release, runner_v2=False) is None


@pytest.mark.parametrize("release", ["0.32.0", "0.33.0"])
def test_model_runner_v2_does_not(release: str) -> None:
    assert asynchronous_obstacle(release, runner_v2=True) == (
        "model runner V2 gives attention on the host only a bound of key lengths"
    )


@pytest.mark.parametrize(("release", "found"), [("0.31.0", "0.31.0"), ("", "an unknown one")])
def test_older_releases_do_not(release: str, found: str) -> None:
    assert asynchronous_obstacle(release, runner_v2=False) == f"it was run with vLLM >=0.32, found {found}"
