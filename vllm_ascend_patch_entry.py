# SPDX-License-Identifier: Apache-2.0
"""The two entry points that vLLM loads. They import the package only when it was asked for, because importing it arms
the patch set."""

import os
import sys

_failure: Exception | None = None


def _consulted() -> bool:
    """Whether the package has a say here: imported already, or the variable has a value (a 0 or a misspelt one
    included)."""
    return "vllm_ascend_patch" in sys.modules or bool(os.environ.get("VLLM_ASCEND_PATCH", "").strip())


def platform() -> str | None:
    """``vllm.platform_plugins``: the dotted name of the NPU platform, or None."""
    global _failure
    if not _consulted():
        return None
    try:
        from vllm_ascend_patch import plugin
    except Exception as error:
        # Importing the package arms it, and that failed. vLLM would swallow the error, so the general plugin raises it:
        # meeting it again is not certain, and by then vLLM has chosen another platform, which is not the cause.
        _failure = error
        return None
    _failure = None
    return plugin.platform()


def general() -> None:
    """``vllm.general_plugins``: validates, raises what went wrong, applies what is pending."""
    if not _consulted():
        return
    if _failure is not None:
        raise _failure
    from vllm_ascend_patch import plugin

    plugin.general()
