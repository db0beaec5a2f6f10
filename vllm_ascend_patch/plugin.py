# SPDX-License-Identifier: Apache-2.0
"""What the two vLLM entry points do, and the conditions under which the patch set stands down or refuses. Patches
nothing itself.

vLLM swallows what a platform plugin raises, so ``platform`` only decides and remembers; ``general`` raises.
Nothing here imports vLLM: the platform plugin runs while half of it is initialised.
"""

import logging
import os
import sys
from dataclasses import dataclass, field

from vllm_ascend_patch.patching.errors import PatchError

from . import armed, envs
from .platforms import competitor, raise_if_too_late
from .releases import runner

logger = logging.getLogger(__name__)

PLATFORM = "vllm_ascend_patch.npu.platform.NPUPlatform"
_SWITCH = "VLLM_ASCEND_PATCH"


@dataclass
class _Outcome:
    """What ``platform`` met in this process, for ``general`` to say.

    Attributes:
        failures: what it would have raised, each once.
        stood_down: why the patch set keeps out.
    """

    failures: list[Exception] = field(default_factory=list)
    stood_down: str | None = None


_outcome = _Outcome()


class NoDevice(PatchError):
    """The patch set was asked for where torch_npu sees no NPU."""


def asked_for() -> bool:
    """Whether the user wants the patch set, by the variable or by importing the package (which sets the variable)."""
    return bool(envs.VLLM_ASCEND_PATCH)


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


def _stand_down(reason: str) -> None:
    if _outcome.stood_down is None:
        logger.warning("%s.", reason)
    _outcome.stood_down = reason
    armed.revert()


def platform() -> str | None:
    """The ``vllm.platform_plugins`` entry point: the dotted name of our platform, or None to stay out.

    Called twice by vLLM, in every process. Arms the patch set; whatever goes wrong is kept for ``general``.
    """
    try:
        if not asked_for():
            return None
        reason = competitor()
        if reason is not None:
            _stand_down(reason)
            return None
        armed.arm()
        count, _ = devices()
        return PLATFORM if count > 0 else None
    except Exception as error:
        if not any(type(error) is type(known) and str(error) == str(known) for known in _outcome.failures):
            _outcome.failures.append(error)
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
    if _outcome.failures:
        raise _outcome.failures[0]
    if not asked_for() or _outcome.stood_down is not None:
        return
    reason = competitor()
    if reason is not None:
        _stand_down(reason)
        return
    count, found = devices()
    if count == 0:
        raise NoDevice(
            f"vllm_ascend_patch was asked for, but there is no NPU to run on: {found}. Check 'npu-smi info', the CANN "
            "environment (source set_env.sh) and ASCEND_RT_VISIBLE_DEVICES; without hardware, run under "
            f"'vllm-ascend-patch virtual-npu -- ...'; to run without the patch set, remove the import or set {_SWITCH}=0"
        )
    raise_if_too_late()
    armed.arm()
    from .releases import guard

    armed.patch_set().foresee()
    guard.forget()
    armed.patch_set().raise_failures()
    _settle_model_runner()


def _register_variables() -> None:
    """Make our variables known to vLLM, which warns about, or refuses, the VLLM_ names that it does not know."""
    registry = getattr(sys.modules.get("vllm.envs"), "environment_variables", None)
    if isinstance(registry, dict):
        for variable in envs.VARIABLES.values():
            registry.setdefault(variable.name, variable.read)


def _settle_model_runner() -> None:
    """Pin the model runner that serves in vLLM's own variable, and say which and why."""
    from .releases import guard

    registry = getattr(sys.modules.get("vllm.envs"), "environment_variables", {})
    chosen = runner.choose(guard.installed_release(), guard.has_runner_v1())
    if runner.VARIABLE not in registry and chosen.name == "V1":
        return  # this release has one runner
    if chosen.obstacle is not None:
        raise envs.EnvError(f"{chosen.obstacle}: {chosen.advice}")
    if runner.VARIABLE in registry:
        os.environ.setdefault(runner.VARIABLE, str(int(chosen.name == "V2")))
    logger.info("vLLM's model runner %s serves: %s", chosen.name, chosen.why)
