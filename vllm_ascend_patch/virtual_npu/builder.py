# SPDX-License-Identifier: Apache-2.0
"""Compiles the virtual NPU with the system's compilers into a cache, once per combination of sources and wheels.

What comes out is a directory with the libraries that stand in for CANN (``lib/``), the folders by which torch_npu
recognises an installation of it (``cann/``) and the Python extension with the CPU kernels (``_virtual_npu.so``). How
processes find and load it is not known here, and nothing here imports torch: a build that is present costs no more than
reading the sources.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
EXTENSION = "_virtual_npu.so"

#: The libraries that torch_npu links or opens, beside libascendcl, which holds all the symbols.
FORWARDING_LIBRARIES = (
    "acl_op_compiler",
    "acl_tdt_channel",
    "ascend_hal",
    "ge_runner",
    "graph",
    "hccl",
    "msprofiler",
    "opapi",
)


class BuildError(RuntimeError):
    """The virtual NPU cannot be built here. The message says what is missing or which command failed."""


@dataclass(frozen=True)
class Wheels:
    """The installed wheels that a build fits."""

    torch: str
    torch_npu: str
    python: str

    @classmethod
    def installed(cls) -> "Wheels":
        """What this interpreter would import. Raises BuildError when one is missing."""
        return cls(
            torch=_version("torch"),
            torch_npu=_version("torch_npu"),
            python=sysconfig.get_config_var("SOABI") or f"cpython-{sys.version_info[0]}{sys.version_info[1]}",
        )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(
            f"{distribution} is not installed for {sys.executable}; the virtual NPU runs under the torch and torch_npu "
            "wheels: install torch first, then torch_npu of the same version with `pip install --no-deps`"
        ) from None


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"{name} is installed but cannot be found by {sys.executable}")
    return Path(spec.submodule_search_locations[0])


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where builds live: ``$XDG_CACHE_HOME/vllm_ascend_patch/virtual_npu``, by default under ``~/.cache``."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vllm_ascend_patch" / "virtual_npu"


def _source_files() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in {".c", ".cpp", ".h"})


def build_directory(wheels: Wheels) -> Path:
    """The directory of the build for these sources and ``wheels``, whether it exists or not."""
    digest = hashlib.sha256()
    for path in _source_files():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    digest.update(json.dumps(asdict(wheels), sort_keys=True).encode())
    return cache_directory() / f"torch-{wheels.torch}-npu-{wheels.torch_npu}-{digest.hexdigest()[:16]}"


def build(*, verbose: bool = False) -> Path:
    """Build what is not built yet and return the build's directory.

    Safe when many processes start at once: one builds, the others wait for it. Raises BuildError.
    """
    wheels = Wheels.installed()
    target = build_directory(wheels)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"the build is kept in {target.parent}, which cannot be written ({error.strerror}); set XDG_CACHE_HOME to a "
            "folder that can"
        ) from None
    with _locked(target.parent / "lock"):
        if target.is_dir():
            return target
        if verbose:
            print(f"virtual-npu: compiling for torch {wheels.torch} and torch_npu {wheels.torch_npu}", file=sys.stderr)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
        try:
            _compile(work, wheels)
            (work / "build.json").write_text(json.dumps(asdict(wheels), indent=1) + "\n")
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compiler(variable: str, names: Sequence[str]) -> str:
    wanted = os.environ.get(variable)
    for name in [wanted] if wanted else names:
        if shutil.which(name):
            return name
    raise BuildError(
        f"no compiler: {wanted or ' or '.join(names)} is not on PATH; install one (Debian: `apt install g++`) or set "
        f"{variable}"
    )


def _compile(target: Path, wheels: Wheels) -> None:
    c_compiler = _compiler("CC", ("cc", "gcc", "clang"))
    cxx_compiler = _compiler("CXX", ("c++", "g++", "clang++"))
    libraries = target / "lib"
    objects = target / "objects"
    libraries.mkdir()
    objects.mkdir()
    for package in ("compiler", "opp", "runtime"):
        (target / "cann" / package).mkdir(parents=True)

    runtime = libraries / "libascendcl.so"
    shared = ["-fPIC", "-shared"]
    c_flags = ["-std=gnu11", "-O2", "-fvisibility=hidden", *shared]
    sources = [str(path) for path in sorted((SOURCES / "cann").glob("*.c"))]
    cuda_build = objects / "cuda_build.o"
    source = SOURCES / "cann" / "cuda_build.cpp"
    _run([cxx_compiler, "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-c", str(source), "-o", str(cuda_build)])
    inputs = [*sources, str(cuda_build), "-lstdc++", "-ldl", "-lpthread"]
    _run([c_compiler, *c_flags, "-Wl,-soname,libascendcl.so", "-o", str(runtime), *inputs])
    empty = objects / "empty.c"
    empty.write_text("typedef int nothing;\n")
    for name in FORWARDING_LIBRARIES:
        output = libraries / f"lib{name}.so"
        link = ["-Wl,--no-as-needed", f"-Wl,-soname,{output.name}", "-Wl,-rpath,$ORIGIN", str(runtime)]
        _run([c_compiler, *shared, "-o", str(output), str(empty), *link])

    torch, torch_npu = _package("torch"), _package("torch_npu")
    includes = [
        torch_npu / "include",
        torch_npu / "include" / "third_party" / "acl" / "inc",
        torch / "include",
        torch / "include" / "torch" / "csrc" / "api" / "include",
        Path(sysconfig.get_paths()["include"]),
    ]
    cxx_flags = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_virtual_npu"]
    cxx_flags += [flag for path in includes for flag in ("-isystem", str(path))]
    link = [str(runtime), f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]
    link += [
        f"-L{torch_npu / 'lib'}",
        "-ltorch_npu",
        "-Wl,--allow-shlib-undefined",
    ]  # in the process before the extension
    compiled = _objects([cxx_compiler, *cxx_flags], _binding_flags(torch), objects, wheels)
    _run([cxx_compiler, "-shared", "-o", str(target / EXTENSION), *map(str, compiled), *link])
    shutil.rmtree(objects)


def _binding_flags(torch: Path) -> list[str]:
    """What makes Python bindings of this compiler find the types of those in the torch wheel.

    Older pybind11 keeps types of compilers with different ABI numbers apart, although these are compatible.
    """
    library = (torch / "lib" / "libtorch_python.so").read_bytes()
    match = re.search(rb"__pybind11_internals_v\d+_gcc_libstdcpp(_cxxabi\d+)__", library)
    return [] if match is None else [f'-DPYBIND11_BUILD_ABI="{match[1].decode()}"']


def _objects(compile_command: Sequence[str], binding_flags: Sequence[str], work: Path, wheels: Wheels) -> list[Path]:
    """Compile the C++ sources, except those whose object an earlier build left behind: a changed file costs one file."""
    identity = json.dumps(asdict(wheels), sort_keys=True)
    kept = cache_directory() / "objects"
    kept.mkdir(exist_ok=True)
    wanted: list[Path] = []
    commands: list[list[str]] = []
    missing: dict[Path, Path] = {}
    for source in sorted((SOURCES / "torch").glob("*.cpp")):
        command = [*compile_command, *(binding_flags if source.name == "module.cpp" else [])]
        digest = hashlib.sha256("\0".join([*command, identity]).encode() + _with_headers(source)).hexdigest()
        wanted.append(kept / f"{source.stem}-{digest[:16]}.o")
        if not wanted[-1].exists():
            missing[work / f"{source.stem}.o"] = wanted[-1]
            commands.append([*command, "-c", str(source), "-o", str(work / f"{source.stem}.o")])
    _run_all(commands)
    for built, target in missing.items():
        built.rename(target)
    return wanted


def _with_headers(source: Path) -> bytes:
    """The contents of ``source`` and of every file of ours that it includes, in a fixed order."""
    found: dict[Path, bytes] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in found and path.exists():
            found[path] = path.read_bytes()
            names = re.findall(rb'^#include "([^"]+)"', found[path], re.MULTILINE)
            waiting += [path.parent / name.decode() for name in names]
    return b"".join(found[path] for path in sorted(found))


def _run(command: Sequence[str]) -> None:
    _run_all([command])


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run the commands, as many at a time as there are cores; raise BuildError with the output of one that failed."""
    waiting = list(commands)
    running: list[tuple[Sequence[str], subprocess.Popen[str]]] = []
    failure: str | None = None
    while waiting or running:
        while waiting and failure is None and len(running) < (os.cpu_count() or 1):
            command = waiting.pop(0)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running.append((command, process))
        command, process = running.pop(0)
        output = process.communicate()[0]
        if process.returncode != 0 and failure is None:
            failure = f"the compiler failed with status {process.returncode}:\n{' '.join(command)}\n{output[-4000:]}"
            waiting.clear()
    if failure is not None:
        raise BuildError(failure)
