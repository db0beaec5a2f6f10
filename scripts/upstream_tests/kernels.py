# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest for upstream's tests: has the platform give vLLM its kernels, which vLLM asks for where it builds a
model runner. Tests of single kernels build none."""

from __future__ import annotations


def pytest_sessionstart() -> None:
    from vllm.platforms import current_platform

    current_platform.register_triton_kernel_overrides()
