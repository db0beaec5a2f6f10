# SPDX-License-Identifier: Apache-2.0
"""Importing this package arms the patch set: stock vLLM, imported before or after, serves on Ascend NPUs. No torch or
vLLM here.

    import vllm_ascend_patch            # before the engine is built
    from vllm import LLM

or, for a deployment that exists already, ``VLLM_ASCEND_PATCH=1`` in its environment. ``VLLM_ASCEND_PATCH=0`` keeps
everything off. The seven functions of ``armed.py`` are the whole public API.
"""

import os
import sys

from . import envs
from .armed import apply, arm, disarm, get_original, hand_over, revert, status

__all__ = ["apply", "arm", "disarm", "get_original", "hand_over", "revert", "status"]
__version__ = "0.1.0"


def _is_command_line() -> bool:
    """Whether this process is our own command line, which reports on the patch set and must not be patched itself."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == "vllm-ascend-patch":
        return True
    return sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv


if not _is_command_line() and not envs.switched_off():
    arm()
