# SPDX-License-Identifier: Apache-2.0
"""Runs the entry points under many conditions, one forked process each; prints one JSON object: scenario -> what
happened.

Runs on simulated NPUs. torch_npu is imported once, before the forks. vLLM is not imported: what the plugin reads of it
(its variable registry, the platform that it chose) is put into ``sys.modules`` as vLLM has it.
"""

import json
import os
import sys
import tempfile
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from tests.support.processes import report


def upstream(chosen: Any = None) -> dict[str, Any]:
    """The two modules of vLLM that the plugin looks at."""
    registry = types.ModuleType("vllm.envs")
    registry.environment_variables = {"VLLM_USE_V2_MODEL_RUNNER": lambda: None}  # type: ignore[attr-defined]
    platforms = types.ModuleType("vllm.platforms")
    platforms._current_platform = chosen  # type: ignore[attr-defined]
    sys.modules["vllm.envs"] = registry
    sys.modules["vllm.platforms"] = platforms
    return registry.environment_variables


def install_rival() -> None:
    """A vllm-ascend distribution on the path."""
    folder = Path(tempfile.mkdtemp())
    info = folder / "vllm_ascend-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-ascend\nVersion: 0.1\n")
    sys.path.insert(0, str(folder))


def entry(**variables: str) -> dict[str, Any]:
    """What vLLM does: the platform plugin twice, then the general plugin."""
    os.environ.update(variables)
    registry = upstream()
    import vllm_ascend_patch_entry as points

    answers = [points.platform(), points.platform()]
    outcome: dict[str, Any] = {"platform": answers}
    try:
        points.general()
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["imported"] = "vllm_ascend_patch" in sys.modules
    outcome["registered"] = sorted(name for name in registry if name.startswith("VLLM_ASCEND_PATCH"))
    outcome["v2"] = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if outcome["imported"]:
        import vllm_ascend_patch

        outcome["states"] = sorted({str(row.state) for row in vllm_ascend_patch.status()})
    return outcome


def imported() -> dict[str, Any]:
    """Asked for by the import alone."""
    import vllm_ascend_patch  # noqa: F401

    return entry()


def rival(**variables: str) -> dict[str, Any]:
    """With vllm-ascend installed."""
    install_rival()
    return entry(**variables)


def too_late() -> dict[str, Any]:
    """The package is imported after vLLM chose another platform."""
    upstream(chosen=object())
    try:
        import vllm_ascend_patch  # noqa: F401
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {}


def overruled() -> dict[str, Any]:
    """vLLM ends on another platform although ours was offered."""
    outcome = entry(VLLM_ASCEND_PATCH="1")
    upstream(chosen=object())
    import vllm_ascend_patch_entry as points

    try:
        points.general()
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    return outcome


def armed_late() -> dict[str, Any]:
    """Arming fails while vLLM asks for the platform, and would work once vLLM has chosen another one."""
    broken = types.ModuleType("vllm.v1.worker.gpu_worker")  # a target's module without the target
    broken.__spec__ = ModuleSpec(broken.__name__, None)
    sys.modules[broken.__name__] = broken
    outcome = entry(VLLM_ASCEND_PATCH="1")
    del sys.modules[broken.__name__]
    upstream(chosen=object())
    import vllm_ascend_patch_entry as points

    try:
        points.general()
    except Exception as error:
        outcome["again"] = f"{type(error).__name__}: {error}"
    return outcome


def unrecorded(**variables: str) -> dict[str, Any]:
    """No record fits the installed release."""
    os.environ["VLLM_ASCEND_PATCH"] = "0"
    from vllm_ascend_patch.patching.record import RecordStore
    from vllm_ascend_patch.releases import records

    records.STORE = RecordStore(Path(tempfile.mkdtemp()))
    return entry(VLLM_ASCEND_PATCH="1", **variables)


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "not asked": entry,
    "variable": lambda: entry(VLLM_ASCEND_PATCH="1"),
    "import": imported,
    "zero": lambda: entry(VLLM_ASCEND_PATCH="0"),
    "bad switch": lambda: entry(VLLM_ASCEND_PATCH="maybe"),
    "bad value": lambda: entry(VLLM_ASCEND_PATCH="1", VLLM_ASCEND_PATCH_STRICT="loud"),
    "bad name": lambda: entry(VLLM_ASCEND_PATCH="1", VLLM_ASCEND_PATCH_STRIKT="warn"),
    "bad id": lambda: entry(VLLM_ASCEND_PATCH="1", VLLM_ASCEND_PATCH_DISABLE="no-such-patch"),
    "all disabled": lambda: entry(VLLM_ASCEND_PATCH="1", VLLM_ASCEND_PATCH_DISABLE="*"),
    "v2 wanted": lambda: entry(VLLM_ASCEND_PATCH="1", VLLM_USE_V2_MODEL_RUNNER="1"),
    "rival": lambda: rival(VLLM_ASCEND_PATCH="1"),
    "rival kept out": lambda: rival(VLLM_ASCEND_PATCH="1", VLLM_PLUGINS="ascend_patch"),
    "too late": too_late,
    "overruled": overruled,
    "armed late": armed_late,
    "unrecorded": unrecorded,
    "unrecorded, warn": lambda: unrecorded(VLLM_ASCEND_PATCH_STRICT="warn"),
    "no device": lambda: entry(VLLM_ASCEND_PATCH="1"),
}


def in_fork(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one scenario in a process of its own; its outcome and what it logged."""
    out, back = os.pipe()
    with tempfile.TemporaryFile("w+") as log:
        pid = os.fork()
        if pid == 0:
            os.dup2(log.fileno(), 2)
            try:
                outcome = action()
            except BaseException as error:
                outcome = {"crash": f"{type(error).__name__}: {error}"}
            os.write(back, json.dumps(outcome).encode())
            os._exit(0)
        os.close(back)
        with os.fdopen(out) as result:
            outcome = json.loads(result.read())
        os.waitpid(pid, 0)
        log.seek(0)
        return {**outcome, "log": log.read()}


if __name__ == "__main__":
    wanted = sys.argv[1:] or [name for name in SCENARIOS if name != "no device"]
    if "no device" not in wanted:
        import torch_npu  # noqa: F401
    report({name: in_fork(SCENARIOS[name]) for name in wanted})
