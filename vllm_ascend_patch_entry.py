# SPDX-License-Identifier: Apache-2.0
"""The two entry points that vLLM loads. They import the package only when it was asked for, because importing it arms
the patch set."""

import os
import sys


def _consulted() -> bool:
    """Whether the package has a say here: imported already, or the variable has a value (a 0 or a misspelt one
    included)."""
    return "vllm_ascend_patch" in sys.modules or bool(os.environ.get("VLLM_ASCEND_PATCH", "").strip())


def platform() -> str | None:
    """``vllm.platform_plugins``: the dotted name of the NPU platform, or None."""
    if not _consulted():
        return None
    try:
        from vllm_ascend_patch import plugin
    except Exception:
        # Importing the package arms it, and that failed. vLLM would swallow the error; the general plugin meets it again.
        return None
    return plugin.platform()


def general() -> None:
    """``vllm.general_plugins``: validates, raises what went wrong, applies what is pending."""
    if not _consulted():
        return
    from vllm_ascend_patch import plugin

    plugin.general()
