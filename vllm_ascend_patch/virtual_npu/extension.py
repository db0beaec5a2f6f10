# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled extension in a process that the launcher started.

The launcher leaves the build's directory in the environment; nothing is compiled or searched for here.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

RUNTIME_VARIABLE = "VIRTUAL_NPU_RUNTIME"

_MODULE = "_virtual_npu"


@functools.cache
def load() -> ModuleType:
    """The extension module, loaded once per process.

    Raises RuntimeError outside of the launcher, and when the process has other wheels than the build was made for.
    """
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    directory = os.environ.get(RUNTIME_VARIABLE)
    if not directory:
        raise RuntimeError(
            "no virtual NPU in this process; start it with `python -m vllm_ascend_patch virtual-npu -- COMMAND`"
        )
    _check_wheels(Path(directory))
    import torch  # noqa: F401  (the extension's libraries must be in the process first)

    spec = importlib.util.spec_from_file_location(_MODULE, Path(directory) / f"{_MODULE}.so")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_MODULE] = module
    return module


def _check_wheels(directory: Path) -> None:
    built = json.loads((directory / "build.json").read_text())
    for name in ("torch", "torch_npu"):
        found = importlib.metadata.version(name)
        if found != built[name]:
            raise RuntimeError(
                f"this virtual NPU was built for {name} {built[name]} but {sys.executable} has {found}; start the "
                "launcher with the Python that runs the command"
            )
