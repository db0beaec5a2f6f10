# SPDX-License-Identifier: Apache-2.0
"""Which platform vLLM has chosen in this process, and who else wants to be it. Decides nothing and imports no vLLM: it is
read out of ``sys.modules``."""

import os
import sys
from typing import Any

from .patching.errors import AppliedTooLate


def competitor() -> str | None:
    """Why vllm-ascend keeps us out, or None. It brings a platform of its own, and vLLM allows one."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("vllm-ascend")
    except PackageNotFoundError:
        return None
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "ascend" not in [name.strip() for name in allowed.split(",")]:
        return None
    return (
        f"vllm-ascend {found} is installed and provides its own platform, so vllm_ascend_patch stands down and patches "
        "nothing. Uninstall vllm-ascend, or keep it from loading with VLLM_PLUGINS=ascend_patch, to use vllm_ascend_patch"
    )


def resolved_platform() -> Any:
    """The platform object that vLLM has chosen in this process, or None while it has not. Never makes it choose."""
    module = sys.modules.get("vllm.platforms")
    return vars(module).get("_current_platform") if module is not None else None


def is_ours(platform_object: Any) -> bool:
    """Whether a platform object comes from this package."""
    return any(cls.__module__.startswith(f"{__package__}.") for cls in type(platform_object).__mro__)


def raise_if_too_late() -> None:
    """Raise ``AppliedTooLate`` when vLLM has chosen another platform already: parts of it hold copies of that
    choice."""
    chosen = resolved_platform()
    if chosen is None or is_ours(chosen) or competitor() is not None:
        return
    raise AppliedTooLate(
        f"vLLM has already chosen its platform ({type(chosen).__name__}), before vllm_ascend_patch was imported. Put "
        "'import vllm_ascend_patch' before the first import of vllm, or set VLLM_ASCEND_PATCH=1 in the environment of the "
        "process"
    )
