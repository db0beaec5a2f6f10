# SPDX-License-Identifier: Apache-2.0
"""What the two vLLM entry points do, and the conditions under which the patch set stands down or refuses. Patches
nothing itself.

vLLM swallows what a platform plugin raises, so :func:`platform` only decides and remembers; :func:`general` raises.
Nothing here imports vLLM: the platform plugin runs while half of it is initialised. It is read out of ``sys.modules``.
"""

import logging
import os
import sys
from typing import Any

from vllm_ascend_patch.patching.errors import AppliedTooLate, PatchError

from . import envs

logger = logging.getLogger(__name__)

PLATFORM = "vllm_ascend_patch.npu.platform.NPUPlatform"
_SWITCH = "VLLM_ASCEND_PATCH"
V2 = "VLLM_USE_V2_MODEL_RUNNER"

_failures: list[Exception] = []
_stood_down: str | None = None


class NoDevice(PatchError):
    """The patch set was asked for where torch_npu sees no NPU."""


def asked_for() -> bool:
    """Whether the user wants the patch set, by the variable or by importing the package (which sets the variable)."""
    return bool(envs.VLLM_ASCEND_PATCH)


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


def devices() -> tuple[int, str]:
    """The number of NPUs that torch_npu sees, and what was found in words. Imports torch_npu."""
    try:
        import torch_npu
    except Exception as error:  # a broken CANN raises anything from ImportError to RuntimeError
        line = (str(error).strip().splitlines() or [""])[0]
        return 0, f"torch_npu cannot be imported ({type(error).__name__}: {line})"
    try:
        count = int(torch_npu.npu.device_count())
    except Exception as error:
        return 0, f"torch_npu {torch_npu.__version__} cannot count its devices ({error})"
    return count, f"torch_npu {torch_npu.__version__} sees {count} NPU device(s)"


def resolved_platform() -> Any:
    """The platform object that vLLM has chosen in this process, or None while it has not. Never makes it choose."""
    module = sys.modules.get("vllm.platforms")
    return vars(module).get("_current_platform") if module is not None else None


def is_ours(platform_object: Any) -> bool:
    """Whether a platform object comes from this package."""
    return any(cls.__module__.startswith(f"{__package__}.") for cls in type(platform_object).__mro__)


def raise_if_too_late() -> None:
    """Raise :class:`AppliedTooLate` when vLLM has chosen another platform already: parts of it hold copies of that
    choice."""
    chosen = resolved_platform()
    if chosen is None or is_ours(chosen) or competitor() is not None:
        return
    raise AppliedTooLate(
        f"vLLM has already chosen its platform ({type(chosen).__name__}), before vllm_ascend_patch was imported. Put "
        "'import vllm_ascend_patch' before the first import of vllm, or set VLLM_ASCEND_PATCH=1 in the environment of the "
        "process"
    )


def _stand_down(reason: str) -> None:
    global _stood_down
    import vllm_ascend_patch

    if _stood_down is None:
        logger.warning("%s.", reason)
    _stood_down = reason
    vllm_ascend_patch.revert()


def platform() -> str | None:
    """The ``vllm.platform_plugins`` entry point: the dotted name of our platform, or None to stay out.

    Called twice by vLLM, in every process. Arms the patch set; whatever goes wrong is kept for :func:`general`.
    """
    try:
        if not asked_for():
            return None
        reason = competitor()
        if reason is not None:
            _stand_down(reason)
            return None
        import vllm_ascend_patch

        vllm_ascend_patch.arm()
        count, _ = devices()
        return PLATFORM if count > 0 else None
    except Exception as error:
        if not any(type(error) is type(known) and str(error) == str(known) for known in _failures):
            _failures.append(error)
        return None


def general() -> None:
    """The ``vllm.general_plugins`` entry point: register our variables, validate, raise what went wrong, apply what is
    pending.

    Raises:
        EnvError: a variable has an invalid value or name, or contradicts what the patch set needs.
        NoDevice: no NPU is visible.
        AppliedTooLate: vLLM runs on another platform.
        PatchError: a patch was refused or failed.
    """
    _register_variables()
    envs.validate()
    if _failures:
        raise _failures[0]
    if not asked_for() or _stood_down is not None:
        return
    reason = competitor()
    if reason is not None:
        _stand_down(reason)
        return
    import vllm_ascend_patch

    count, found = devices()
    if count == 0:
        raise NoDevice(
            f"vllm_ascend_patch was asked for, but there is no NPU to run on: {found}. Check 'npu-smi info', the CANN "
            "environment (source set_env.sh) and ASCEND_RT_VISIBLE_DEVICES; without hardware, run under "
            f"'vllm-ascend-patch virtual-npu -- ...'; to run without the patch set, remove the import or set {_SWITCH}=0"
        )
    raise_if_too_late()
    vllm_ascend_patch.arm()
    from .releases import guard

    vllm_ascend_patch._patches().foresee()
    guard.forget()
    vllm_ascend_patch._patches().raise_failures()
    _use_model_runner_v1()


def _register_variables() -> None:
    """Make our variables known to vLLM, which warns about, or refuses, the VLLM_ names that it does not know."""
    registry = getattr(sys.modules.get("vllm.envs"), "environment_variables", None)
    if isinstance(registry, dict):
        for variable in envs.VARIABLES.values():
            registry.setdefault(variable.name, variable.read)


def _use_model_runner_v1() -> None:
    """Pin vLLM's model runner to V1, where the seams are; say so, and refuse an explicit wish for V2."""
    registry = getattr(sys.modules.get("vllm.envs"), "environment_variables", {})
    if V2 not in registry:
        return  # this release has one runner
    value = os.environ.get(V2)
    if value == "0":
        return
    if value is not None and value.strip() not in ("", "0"):
        raise envs.EnvError(
            f"{V2}={value} asks for model runner V2, but vllm_ascend_patch works on model runner V1: unset {V2} or set it "
            "to 0"
        )
    os.environ[V2] = "0"
    logger.info("%s=0: the patch set works on vLLM's model runner V1", V2)
