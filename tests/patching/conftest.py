# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the patch engine: small upstream packages written to disk, and processes of their own."""

import itertools
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch_npu needs CANN, which these tests do without

import vllm_ascend_patch

vllm_ascend_patch.disarm()  # the test process itself must not be patched, nor hand the variable on

ROOT = Path(__file__).resolve().parents[2]
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


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without any variable that changes what the package does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "VIRTUAL_NPU", "ASCEND_", "HCCL_"))
    }
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # importing vLLM without bytecode takes twice as long
    kept.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    return {**kept, **extra}


def run_python(source: str, *arguments: str, environment: dict[str, str] | None = None, seconds: float = 120) -> str:
    """Run a program in a process of its own; its standard output. Fails the test with all of its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        env=environment if environment is not None else clean_environment(),
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def virtual_npu() -> list[str]:
    """The command that puts a program on two simulated NPUs, built beforehand. Skips where there is no compiler."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler: the virtual NPU cannot be built here")
    command = [sys.executable, "-m", "vllm_ascend_patch", "virtual-npu", "--devices", "2", "--", sys.executable]
    built = subprocess.run(
        [*command, "-c", "pass"], capture_output=True, text=True, env=clean_environment(), timeout=550, check=False
    )
    assert built.returncode == 0, f"the virtual NPU does not start:\n{built.stderr[-4000:]}"
    return command
