# SPDX-License-Identifier: Apache-2.0
"""What the processes that Ray starts for data-parallel engines need in order to see NPUs. Knows Ray's variable, not Ray.

vLLM's engine in such a process asks Ray for no NPU, its workers do: Ray hides every NPU from it, and it would find no
platform to configure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def show_npus(vllm_config: VllmConfig, variables: Sequence[str]) -> None:
    """With ``--data-parallel-backend ray``, keep Ray from hiding NPUs in the engines' processes.

    Args:
        variables: Ray's own that do so; a user's value stays.
    """
    if getattr(vllm_config.parallel_config, "data_parallel_backend", "mp") != "ray":
        return
    # vLLM hands the variables that it knows to those processes, in every release.
    known = getattr(sys.modules.get("vllm.envs"), "environment_variables", {})
    for name in variables:
        os.environ.setdefault(name, "1")
        known.setdefault(name, lambda name=name: os.environ.get(name))
