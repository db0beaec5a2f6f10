# SPDX-License-Identifier: Apache-2.0
"""The fixture of tests that compute on a virtual NPU in their own process. What they test does not belong here."""

import os

import pytest


@pytest.fixture(scope="session")
def npu() -> None:
    """This process runs under the launcher. A test that needs it and runs without it fails: it would prove nothing."""
    if "VIRTUAL_NPU_RUNTIME" not in os.environ:
        pytest.fail("this test needs a virtual NPU: run it with `bash scripts/test.sh PATH`", pytrace=False)
