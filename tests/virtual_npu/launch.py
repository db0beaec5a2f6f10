# SPDX-License-Identifier: Apache-2.0
"""The command ``virtual-npu`` itself, started anew with time limits: what an outer launcher set is not inherited."""

import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.support.environment import clean_environment
from tests.support.processes import run


def launcher(
    arguments: Sequence[str], *, seconds: float = 120, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m vllm_ascend_patch virtual-npu ARGUMENTS``, in a clean environment if none is given."""
    command = [sys.executable, "-m", "vllm_ascend_patch", "virtual-npu", *arguments]
    return run(command, seconds=seconds, environment=environment)


def python(code: str, *options: str, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python ``code`` under the launcher with ``options``."""
    arguments = [*options, "--", sys.executable, "-c", code]
    return launcher(arguments, seconds=seconds, environment=clean_environment(**environment))
