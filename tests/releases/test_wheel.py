# SPDX-License-Identifier: Apache-2.0
"""The wheel: it carries every file of the package, and works outside of the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.environment import ROOT, without_devices

PACKAGE = ROOT / "vllm_ascend_patch"
MODULE = ROOT / "vllm_ascend_patch_entry.py"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", MODULE.name):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "-w", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(folder), str(wheel))
    return folder


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {str(path.relative_to(ROOT)) for path in [*files, MODULE]}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == wanted


def test_an_installed_wheel_builds_the_virtual_npu_and_its_doctor_would_serve(installed: Path, tmp_path: Path) -> None:
    """Away from the checkout, the sources of the virtual NPU and the records are those of the wheel."""
    command = [sys.executable, "-m", "vllm_ascend_patch"]
    environment = without_devices(PYTHONPATH=str(installed), VLLM_ASCEND_PATCH="1")
    done = subprocess.run(
        [*command, "virtual-npu", "--", *command, "doctor"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A serve would work here." in done.stdout
