# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the patch engine: small upstream packages written to disk, and processes of their own."""

import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "torch" not in sys.modules and "VIRTUAL_NPU_DEVICES" not in os.environ:
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch_npu needs CANN, which these tests do without

import vllm_ascend_patch
from tests.support.environment import without_devices
from tests.support.npus import virtual_npu_command
from tests.support.processes import run

vllm_ascend_patch.disarm()  # the test process itself must not be patched, nor hand the variable on

_numbers = itertools.count()


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write a package under a fresh name and make it importable: ``name = upstream({"mod": "source"})``."""
    names = []

    def write(files: dict[str, str], name: str | None = None) -> str:
        name = name or f"upstream{next(_numbers)}"
        names.append(name)
        for module, source in {"__init__": "", **files}.items():
            path = tmp_path / name / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source).replace("PKG", name))
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for module in list(sys.modules):
        if module.partition(".")[0] in names:
            del sys.modules[module]


@pytest.fixture(scope="session")
def virtual_npu() -> list[str]:
    """The command that puts a program on two simulated NPUs, built beforehand. Skips where there is no compiler."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler: the virtual NPU cannot be built here")
    command = virtual_npu_command([sys.executable], devices=2)
    built = run([*command, "-c", "pass"], seconds=550, environment=without_devices())
    assert built.returncode == 0, f"the virtual NPU does not start:\n{built.stderr[-4000:]}"
    return command
