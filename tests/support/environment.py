# SPDX-License-Identifier: Apache-2.0
"""Where the repository is, and what a process gets from this one: environment variables and TCP ports. Starts nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .npus import has_real_npus

ROOT = Path(__file__).resolve().parents[2]
"""The repository's root."""

_DROPPED = (
    "VLLM_",
    "VIRTUAL_NPU",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",  # importing vLLM takes twice as long with it, in every process
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
)
_OF_NPUS = ("ASCEND_", "HCCL_", "LD_LIBRARY_PATH", "TASK_QUEUE_ENABLE")
"""CANN's, and the launcher's of the virtual NPU: who starts that one anew must not inherit them."""


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what was set for vLLM, this package or virtual NPUs, and with this tree's packages
    first; then ``extra``."""
    dropped = _DROPPED if has_real_npus() else (*_DROPPED, *_OF_NPUS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def without_devices(**extra: str) -> dict[str, str]:
    """A clean environment in which ``import torch`` leaves torch_npu alone, whose libraries need CANN or the launcher."""
    return clean_environment(**{"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **extra})


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
