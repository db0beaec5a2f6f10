# SPDX-License-Identifier: Apache-2.0
"""Starts the checks that need the virtual NPU, each in a process of its own under the launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.npus import virtual_npu_command
from tests.support.processes import run

HERE = Path(__file__).parent


def on_device(file: str, soc: str, devices: int, seconds: float, folder: Path) -> str:
    """Run a file of checks with pytest under the launcher; its output. Fails when a check fails or none ran."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
    log = folder / f"{Path(file).stem}-{soc}.log"
    done = run(virtual_npu_command(command, devices, soc, "2GiB"), seconds=seconds, log=log)
    text = done.stdout
    assert done.returncode == 0, text[-6000:]
    assert " passed" in text, text[-6000:]
    return text


@pytest.mark.parametrize("soc", ["A2", "A3"])
def test_shapes_dtypes_and_devices(soc: str, tmp_path: Path) -> None:
    on_device("device_shapes.py", soc, 2, 240, tmp_path)


@pytest.mark.parametrize("soc", ["A2", "A3"])
def test_dispatch_and_combine_over_hccl(soc: str, tmp_path: Path) -> None:
    on_device("device_ranks.py", soc, 2, 280, tmp_path)
