# SPDX-License-Identifier: Apache-2.0
"""Starts the checks that need the virtual NPU, each in a process of its own under the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def on_device(file: str, soc: str, devices: int, seconds: float, folder: Path) -> str:
    """Run a file of checks with pytest under the launcher; its output. Fails when a check fails or none ran."""
    command = [sys.executable, "-m", "vllm_ascend_patch", "virtual-npu", "--devices", str(devices), "--soc", soc]
    command += [
        "--memory",
        "2GiB",
        "--",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / file),
    ]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("TORCH_DEVICE_BACKEND_AUTOLOAD", "VLLM_ASCEND_PATCH")
    }
    log = folder / f"{Path(file).stem}-{soc}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"still running after {seconds} s\n{log.read_text()[-6000:]}")
    text = log.read_text()
    assert code == 0, text[-6000:]
    assert " passed" in text, text[-6000:]
    return text


@pytest.mark.parametrize("soc", ["A2", "A3"])
def test_shapes_dtypes_and_devices(soc: str, tmp_path: Path) -> None:
    on_device("device_shapes.py", soc, 2, 240, tmp_path)


@pytest.mark.parametrize("soc", ["A2", "A3"])
def test_dispatch_and_combine_over_hccl(soc: str, tmp_path: Path) -> None:
    on_device("device_ranks.py", soc, 2, 280, tmp_path)
