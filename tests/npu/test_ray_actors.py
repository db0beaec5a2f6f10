# SPDX-License-Identifier: Apache-2.0
"""Engines that Ray starts see NPUs: vLLM hands them the variable that keeps Ray from hiding those. Without Ray."""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import os

import pytest
from vllm import envs
from vllm.config import DeviceConfig, ParallelConfig, VllmConfig
from vllm.ray.ray_env import get_env_vars_to_copy

from vllm_ascend_patch.npu.platform import NPUPlatform
from vllm_ascend_patch.npu.ray_actors import show_npus

VARIABLE = "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("backend", "user", "handed"), [("ray", None, "1"), ("ray", "0", "0"), ("mp", None, None), ("mp", "1", None)]
)
def test_only_engines_of_ray_are_handed_the_variable_and_a_users_value_stays(
    backend: str, user: str | None, handed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "environment_variables", dict(envs.environment_variables))
    monkeypatch.setenv(VARIABLE, user or "")
    if user is None:
        monkeypatch.delenv(VARIABLE)
    parallel = ParallelConfig(data_parallel_backend=backend)
    config = VllmConfig(device_config=DeviceConfig(device="cpu"), parallel_config=parallel)
    show_npus(config, NPUPlatform.ray_noset_device_env_vars)
    found = {name: os.environ.get(name) for name in get_env_vars_to_copy()}
    assert found.get(VARIABLE) == handed
