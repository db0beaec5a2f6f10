# SPDX-License-Identifier: Apache-2.0
"""How a command gets NPUs: those of the machine, or virtual ones where there are none. Starts nothing."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence


def has_real_npus() -> bool:
    """True on a machine with Ascend NPUs: the driver makes one character device for each."""
    return bool(glob.glob("/dev/davinci[0-9]*"))


def has_npus() -> bool:
    """True where this process has NPUs, real ones or a launcher's."""
    return "VIRTUAL_NPU_RUNTIME" in os.environ or has_real_npus()


def virtual_npu_command(command: Sequence[str], devices: int, soc: str = "A2", memory: str = "8GiB") -> list[str]:
    """``command`` as it runs on ``devices`` virtual NPUs of ``memory`` each; its order is checked if this process's is."""
    launcher = [sys.executable, "-m", "vllm_ascend_patch", "virtual-npu"]
    launcher += ["--check-order"] if "VIRTUAL_NPU_CHECK_ORDER" in os.environ else []
    return [*launcher, "--devices", str(devices), "--soc", soc, "--memory", memory, "--", *command]


def npu_command(command: Sequence[str], devices: int, soc: str = "A2", memory: str = "8GiB") -> list[str]:
    """``command`` as it runs on this machine's NPUs, or on ``devices`` virtual ones where there are none."""
    return list(command) if has_real_npus() else virtual_npu_command(command, devices, soc, memory)
