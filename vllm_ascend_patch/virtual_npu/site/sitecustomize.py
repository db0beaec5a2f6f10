# SPDX-License-Identifier: Apache-2.0
"""Runs at the start of every Python process under the virtual NPU's launcher: waits for torch_npu to be imported, and
keeps processes that wait for each other from taking the cores that the simulated devices compute on.

Imports nothing heavy and not the package around it (that would arm the patch set): the directory above is loaded under a
name of its own. Another sitecustomize further down the path is run too.
"""

import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType

_HERE = os.path.dirname(os.path.realpath(__file__))
_RUNTIME = "vllm_ascend_virtual_npu"


def _load_runtime() -> ModuleType:
    """The package in the directory above, as ``vllm_ascend_virtual_npu``."""
    if _RUNTIME not in sys.modules:
        directory = os.path.dirname(_HERE)
        spec = importlib.util.spec_from_file_location(
            _RUNTIME, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_RUNTIME] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{_RUNTIME}.runtime")


class _ActivatingLoader(Loader):
    """The loader of torch_npu, with the activation behind it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _load_runtime().activate()

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch_npu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ActivatingLoader(spec.loader)
        return spec


def _run_next_sitecustomize() -> None:
    rest = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _yield_by_sleeping() -> None:
    """In place of ``os.sched_yield``. A loop that spins on it, as vLLM's message queues do, would take a core from the
    devices, which compute on this host: two tensor-parallel workers on two cores need a third less processor time so."""
    time.sleep(1e-4)


if "VIRTUAL_NPU_RUNTIME" in os.environ:
    sys.meta_path.insert(0, _Finder())
    os.sched_yield = _yield_by_sleeping
_run_next_sitecustomize()
