# SPDX-License-Identifier: Apache-2.0
"""The wheel: it carries every file of the package, declares what it imports, is the same whenever it is built, and works
outside of the checkout under every Python that it is for."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.environment import ROOT, without_devices
from tests.support.installed import needs_vllm

PACKAGE = ROOT / "vllm_ascend_patch"
MODULE = ROOT / "vllm_ascend_patch_entry.py"
PROJECT = ("pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE", MODULE.name)
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_of_the_checkout(folder: Path) -> Path:
    """What is built, in ``folder/source``, so that building leaves nothing in the checkout."""
    source = folder / "source"
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT:
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_checkout(folder)
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


@needs_vllm
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


def build(folder: Path, kind: str, mask: int, seconds: int) -> bytes:
    """The archive of a checkout made under a file mode mask, whose files were written at a time."""
    source = copy_of_the_checkout(folder)
    for path in [source, *source.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        os.utime(path, (seconds, seconds))
    program = (
        f"import os; os.umask({mask}); from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        env={**without_devices(), "PYTHONPATH": "", "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (path for path in folder.iterdir() if path.is_file())
    return archive.read_bytes()


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_builds_are_the_same_byte_for_byte(kind: str, tmp_path: Path) -> None:
    builds = []
    for name, mask, seconds in (("one", 0o022, 1_600_000_000), ("other", 0o077, 1_650_000_000)):
        (tmp_path / name).mkdir()
        builds.append(build(tmp_path / name, kind, mask, seconds))
    assert builds[0] == builds[1]


def find_uv() -> str | None:
    """The uv of this environment, or one on the ``PATH``."""
    return shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def find_python(version: str) -> str | None:
    """An interpreter of this version on the ``PATH``, among pyenv's, or one that uv knows of."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"{version}.*/bin/python"))]
    if uv := find_uv():
        known = subprocess.run(
            [uv, "python", "find", "--no-python-downloads", "--no-project", version],
            capture_output=True,
            text=True,
            check=False,
        )
        candidates.append(known.stdout.strip())
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", program], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:  # a shim of pyenv may be there without its Python
            return candidate
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_with_its_declared_dependencies_alone(version: str, wheel: Path, tmp_path: Path) -> None:
    """Into an empty environment of each Python: every source compiles, and the doctor says what is missing."""
    base = find_python(version)
    if base is None:
        pytest.skip(f"no Python {version} on this machine")
    environment = {name: value for name, value in without_devices().items() if not name.startswith("PYTHON")}
    python = str(tmp_path / "venv" / "bin" / "python")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False
        )

    venv, uv = str(tmp_path / "venv"), find_uv()
    with_pip = ([base, "-m", "venv", venv], [python, "-m", "pip", "install", "-q", str(wheel)])
    with_uv = ([uv or "", "venv", "-q", "-p", base, venv], [uv or "", "pip", "install", "-q", "-p", python, str(wheel)])
    for command in with_uv if uv else with_pip:  # uv is the faster one
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    where = run(python, "-c", "import vllm_ascend_patch; print(vllm_ascend_patch.__path__[0])")
    package = Path(where.stdout.strip())
    assert package.is_relative_to(tmp_path), where.stdout + where.stderr
    compiled = run(python, "-W", "error", "-m", "compileall", "-q", "-f", str(package))
    assert compiled.returncode == 0, compiled.stdout
    doctor = run(python, "-m", "vllm_ascend_patch", "doctor")
    assert "Traceback" not in doctor.stdout + doctor.stderr, doctor.stderr
    assert doctor.returncode == 1
    for missing in ("torch", "torch_npu", "vLLM"):
        (row,) = (line for line in doctor.stdout.splitlines() if line.split()[1:2] == [missing])
        assert "fail" in row
        assert "not installed" in row
