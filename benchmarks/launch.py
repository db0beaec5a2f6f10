# SPDX-License-Identifier: Apache-2.0
"""How a benchmark comes by its NPUs and the repository's packages when it is started by its plain command. Measures nothing.

Imports neither torch nor this repository's packages at its head: torch loads torch_npu, which needs a runtime under it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])


def on_npus(devices: int, soc: str = "A2") -> None:
    """Return where there are NPUs, real ones or a launcher's, and the repository is on the path; otherwise start this very
    command again, in this process's place, on ``devices`` virtual NPUs."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if _ROOT not in paths:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, _ROOT])}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    from tests.support.npus import has_npus, virtual_npu_command

    if not has_npus():
        command = virtual_npu_command([sys.executable, *sys.orig_argv[1:]], devices, soc)
        os.execv(command[0], command)
