# SPDX-License-Identifier: Apache-2.0
"""What a developer runs, one session each; ``nox -l`` lists them. ``scripts/test.sh`` and CI run them, too.

Sessions use the environment of ``scripts/setup_env.sh``, which makes it where it is missing, and install nothing into it.
Start nox from it (``.venv/bin/nox``), or from anywhere else.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nox
import nox.command

ROOT = Path(__file__).resolve().parent
DEFAULT_LINE = "0.32.0"
"""The vLLM release that everything is run on."""

WITHOUT_DEVICES = "tests/dp"
"""The data-parallel core needs no device, and its tests fork: they run without torch_npu's runtime in the process."""

SIDE_BY_SIDE = ("-n", "2", "--dist", "loadscope", "--no-loadscope-reorder")
"""Two processes of pytest, one for the engines and one for the rest: tests/conftest.py says which runs what."""

BENCHMARKS = (
    "patch_overhead",
    "virtual_npu_overhead",
    "moe_host_cost",
    "moe_comm",
    "dp_sync",
    "mla_cost",
    "weights",
    "decode_step",
)

nox.options.default_venv_backend = "none"
nox.options.sessions = ["check", "test"]
nox.options.stop_on_first_error = True


@nox.session
def check(session: nox.Session) -> None:
    """Style, types, imports, licences, generated tables: what pre-commit and CI check."""
    python = _python(session)
    _run(session, python, "ruff", "check", ".")
    _run(session, python, "ruff", "format", "--check", ".")
    _run(session, python, "mypy")
    session.run(str(Path(python).with_name("lint-imports")), "--no-logo", external=True)
    _run(session, python, "scripts.source_rules")
    _run(session, python, "vllm_ascend_patch", "docs", "--check", *_documents())


@nox.session
def test(session: nox.Session) -> None:
    """The tests: all that are not slow; or pytest's arguments (nox -s test -- tests/serve -k graphs)."""
    if session.posargs:
        _tests(session, _python(session), session.posargs)
    else:
        _tests(session, _python(session), ["-m", "not slow"], on_npus=SIDE_BY_SIDE)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take minutes each; with further arguments for pytest."""
    _tests(session, _python(session), ["-m", "slow", *session.posargs])


@nox.session
def ray(session: nox.Session) -> None:
    """Engines over Ray on two hosts. Ray goes into a folder of its own: with it importable, vLLM behaves otherwise."""
    python = _python(session)
    folder = ROOT / ".ray"
    if not (folder / "ray").exists():
        pins = ROOT / "scripts" / "requirements" / "ray.txt"
        _run(session, python, "pip", "install", "-q", "--no-deps", "--target", str(folder), "-r", str(pins))
    environment = {"PYTHONPATH": str(folder), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    session.run(
        python, "-m", "pytest", "tests/dp/test_ray_on_hosts.py", *session.posargs, env=environment, external=True
    )


@nox.session
def release(session: nox.Session) -> None:
    """The tests on another vLLM: nox -s release -- LINE [pytest's arguments]; without, one test of each kind."""
    if not session.posargs:
        session.error("which release? nox -s release -- LINE; there are pins for " + ", ".join(_lines()))
    line, *arguments = session.posargs
    python = _environment(line)
    if arguments:
        return _tests(session, python, arguments)
    # Random schedules through the release's own decision code; on the CPU, in many processes.
    _tests(session, python, ["tests/dp/test_fuzz.py", "-m", "not slow"])
    oracle = "tests/serve/test_oracle.py::test_greedy_tokens_equal_transformers"
    graphs = "tests/serve/test_graphs.py::test_tokens_equal_transformers_with_graphs"
    engines = [
        f"{oracle}[qwen2_moe-one device-V1]",
        f"{oracle}[mixtral-dp 2 with ep-V1]",
        f"{graphs}[mixtral_wide-1-2-A3-methods1]",
    ]
    others = ["tests/serve/test_refusals.py", "tests/releases", "tests/patching/test_real_vllm.py"]
    _tests(session, python, [*engines, *others, "-m", "not slow"])


@nox.session
def matrix(session: nox.Session) -> None:
    """Every supported vLLM release on tiny models: nox -s matrix -- [RELEASE …] [--only CONFIGURATION]."""
    _run(session, _python(session), "scripts.matrix.run", *session.posargs)


@nox.session
def upstream(session: nox.Session) -> None:
    """vLLM's own tests under the patch: the short lane, or nox -s upstream -- LANE … [--record]."""
    _run(session, _python(session), "scripts.upstream_tests.run", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks, all or one with its options: nox -s bench -- dp_sync --ranks 2 4."""
    python = _python(session)
    if session.posargs and session.posargs[0] not in BENCHMARKS:
        session.error(f"there is no benchmark {session.posargs[0]!r}; there are {', '.join(BENCHMARKS)}")
    name, *options = session.posargs or [""]
    for benchmark in [name] if name else BENCHMARKS:
        session.run(python, f"benchmarks/{benchmark}.py", *options, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated tables of the documentation anew."""
    _run(session, _python(session), "vllm_ascend_patch", "docs", *_documents())


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel into dist/, from the tree as it is."""
    _run(session, _python(session), "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", ".")


def _tests(session: nox.Session, python: str, arguments: list[str], on_npus: Sequence[str] = ()) -> None:
    """pytest, in the environment that the tests of each path need: both where no path is named."""
    paths = [argument for argument in arguments if _is_path(argument)]
    options = [argument for argument in arguments if argument not in paths]
    without = [path for path in paths if _below(path)]
    with_devices = [path for path in paths if path not in without]
    both = any(WITHOUT_DEVICES.startswith(f"{Path(path).as_posix()}/") or path == "." for path in with_devices)
    if not paths or both:
        without = without or [WITHOUT_DEVICES]
        options_on_npus = [f"--ignore={WITHOUT_DEVICES}", *options]
    else:
        options_on_npus = options
    pytest = [python, "-m", "pytest"]
    commands: list[tuple[list[str], dict[str, str]]] = []
    if without:
        commands.append(([*pytest, *without, *options], {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}))
    if with_devices or not paths:
        launcher = [python, "-m", "vllm_ascend_patch", "virtual-npu", "--devices", "8", "--"]
        commands.append(([*launcher, *pytest, *with_devices, *options_on_npus, *on_npus], {}))
    ran = [_ran_a_test(session, command, environment) for command, environment in commands]
    if not any(ran):
        session.error(f"no test was selected by {' '.join(arguments)}")


def _ran_a_test(session: nox.Session, command: list[str], environment: dict[str, str]) -> bool:
    """Run pytest, which fails the session when a test does. False for its exit code 5: a selection may leave one of the two
    environments without a test."""
    try:
        session.run(*command, env=environment, external=True)
    except nox.command.CommandFailed as failed:
        if failed.return_code != 5:
            raise
        return False
    return True


def _is_path(argument: str) -> bool:
    return not argument.startswith("-") and (ROOT / argument.partition("::")[0]).exists()


def _below(path: str) -> bool:
    return (ROOT / path.partition("::")[0]).resolve().is_relative_to(ROOT / WITHOUT_DEVICES)


def _run(session: nox.Session, python: str, module: str, *arguments: str) -> None:
    session.run(python, "-m", module, *arguments, external=True)


def _python(session: nox.Session) -> str:
    """The interpreter of the environment that nox was started from, or of the default one if that is not of this tree."""
    own = Path(sys.prefix)
    return sys.executable if own.parent == ROOT and own.name.startswith(".venv") else _environment(DEFAULT_LINE)


def _environment(line: str) -> str:
    """The interpreter of the environment for a vLLM release, which is made when it is missing."""
    command = ["bash", str(ROOT / "scripts" / "setup_env.sh"), "--vllm", line]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"there is no environment for vLLM {line}; there are pins for {', '.join(_lines())}")
    return str(Path(done.stdout.splitlines()[-1]) / "bin" / "python")


def _lines() -> list[str]:
    files = (ROOT / "scripts" / "requirements").glob("vllm-*.txt")
    return sorted(file.stem.removeprefix("vllm-") for file in files)


def _documents() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]]
