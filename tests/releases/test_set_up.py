# SPDX-License-Identifier: Apache-2.0
"""``scripts/setup_env.sh``: which torch it takes, what it tells uv, and what an interruption leaves. Python, pip and uv are
stand-ins that write down what they were asked; nothing is downloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import ROOT

TOOLS = (
    "bash",
    "cat",
    "chmod",
    "cut",
    "dirname",
    "flock",
    "grep",
    "head",
    "ls",
    "mkdir",
    "rm",
    "sed",
    "sha256sum",
    "tail",
    "tr",
)
CUDA = "nvidia-cublas==13.1.1.3\ntorch==2.13.0"

PYTHON = """#!{bash}
case "$*" in
  "-c import sys; print"*) echo "$FAKE_VERSION" ;;
  "--version") echo "Python $FAKE_VERSION.1" ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    for tool in python pip uv; do cat "{tools}/$tool" > "$3/bin/$tool"; chmod +x "$3/bin/$tool"; done ;;
esac
echo "python $*" >> "{log}"
"""
PIP = """#!{bash}
if [ "$1" = config ]; then
  name=FAKE_PIP_${{3#*.}}
  name=${{name//-/_}}
  [ -n "${{!name:-}}" ] && echo "${{!name}}"
  exit
fi
echo "pip $*" >> "{log}"
"""
UV = """#!{bash}
echo "uv $*" >> "{log}"
for name in SSL_CERT_FILE UV_DEFAULT_INDEX UV_FIND_LINKS UV_INDEX XDG_CACHE_HOME; do
  echo "$name=${{!name:-}}" >> "{log}"
done
if [ -n "${{FAKE_DIES_AT:-}}" ]; then case "$*" in *"$FAKE_DIES_AT"*) kill -9 $PPID; exit 1 ;; esac; fi
case "$*" in
  "pip compile"*) [ -n "$FAKE_RESOLVED" ] && echo "$FAKE_RESOLVED" ;;
  *"-r "*"vllm-"*) [ -z "${{FAKE_INDEX_LACKS:-}}" ] || [ -n "${{UV_INDEX:-}}" ] || exit 1 ;;
  *"--torch-backend cpu"*) [ -n "${{FAKE_CPU_INDEX:-}}" ] || {{ echo "error: no such host" >&2; exit 1; }} ;;
esac
"""


class Machine:
    """A copy of the set-up in a tree of its own, and the tools that it finds there."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.path, self.log = folder / "tree", folder / "path", folder / "log"
        tools = folder / "tools"
        for made in (self.path, tools, self.tree, folder / "home"):
            made.mkdir()
        (self.tree / "scripts").mkdir()
        for script in ("setup_env.sh", "writable_cache.sh"):
            shutil.copy(ROOT / "scripts" / script, self.tree / "scripts")
        shutil.copytree(ROOT / "scripts" / "requirements", self.tree / "scripts" / "requirements")
        for tool in TOOLS:
            found = shutil.which(tool)
            if found is not None:
                (self.path / tool).symlink_to(found)
        words = {"bash": shutil.which("bash"), "log": self.log, "tools": tools}
        for name, text in (("python", PYTHON), ("pip", PIP), ("uv", UV)):
            (tools / name).write_text(text.format(**words))
        self.python = PYTHON.format(**words)
        self.install("python3.11", self.python)
        self.install("g++", "")
        self.install("uname", 'echo "${FAKE_MACHINE:-x86_64}"')
        self.environment = {
            "PATH": str(self.path),
            "HOME": str(folder / "home"),
            "FAKE_VERSION": "3.11",
            "FAKE_RESOLVED": CUDA,
        }

    def install(self, name: str, text: str) -> None:
        file = self.path / name
        file.write_text(text if text.startswith("#!") else f"#!{shutil.which('bash')}\n{text}\n")
        file.chmod(0o755)

    def set_up(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.tree / "scripts" / "setup_env.sh"), *arguments]
        self.log.write_text("")
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env={**self.environment, **environment}
        )

    def asked(self, what: str) -> list[str]:
        """The commands of the last set-up that hold these words."""
        return [line for line in self.log.read_text().splitlines() if what in line]

    def installs(self) -> list[str]:
        """What uv was told to install, without its options."""
        return [line.partition("--no-deps ")[2] for line in self.asked("uv pip install")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if sys.platform != "linux":
        pytest.skip("the set-up is for Linux")
    return Machine(tmp_path)


def test_a_cpu_build_in_a_wheel_folder_is_taken_without_asking_further(machine: Machine) -> None:
    done = machine.set_up(FAKE_RESOLVED="jinja2==3.1.6\ntorch==2.13.0+cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(machine.tree / ".venv")
    assert machine.installs()[0] == "torch==2.13.0+cpu"
    assert not machine.asked("--torch-backend")


@pytest.mark.parametrize("line", ["0.32.0", "0.33.0", "0.10.1.1"])
def test_where_the_index_offers_a_cuda_build_every_line_takes_pytorchs_cpu_build(machine: Machine, line: str) -> None:
    done = machine.set_up("--vllm", line, FAKE_CPU_INDEX="1")
    assert done.returncode == 0, done.stderr
    torch = [install for install in machine.installs() if "torch==" in install and "torch_npu" not in install]
    assert len(torch) == 1
    assert torch[0].startswith("--torch-backend cpu torch==")
    assert not any("cuda-" in install for install in machine.installs())


def test_without_any_torch_one_error_says_how_to_get_one(machine: Machine) -> None:
    done = machine.set_up(FAKE_RESOLVED="")
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if "[setup]" not in line]
    for words in ("torch 2.13.0", "no such host", "torch-2.13.0+cpu", "PIP_FIND_LINKS"):
        assert words in error
    assert machine.installs() == ["--torch-backend cpu torch==2.13.0"]


@pytest.mark.parametrize(("line", "torch"), [("0.32.0", "2.13.0"), ("0.10.1.1", "2.7.1")])
def test_without_a_cpu_build_the_cuda_build_comes_with_its_libraries_and_without_triton(
    machine: Machine, line: str, torch: str
) -> None:
    done = machine.set_up("--vllm", line, FAKE_RESOLVED=f"{CUDA}\ntriton==3.6.0\ncuda-bindings==13.0.3")
    assert done.returncode == 0, done.stderr
    assert f"torch=={torch} nvidia-cublas==13.1.1.3 cuda-bindings==13.0.3" in machine.installs()
    assert "PIP_FIND_LINKS" in done.stderr


def test_a_stack_of_its_own_goes_into_a_folder_of_its_own_without_vllm(machine: Machine, tmp_path: Path) -> None:
    stack = ("--torch", "2.10.0", "--torch-npu", "2.10.0.post7", "--into", str(tmp_path / "stack"))
    done = machine.set_up(*stack, FAKE_CPU_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "stack")
    assert machine.installs() == [
        "--torch-backend cpu torch==2.10.0",
        "-r scripts/requirements/vllm-0.32.0.txt",
        "torch_npu==2.10.0.post7",
        "--no-build-isolation -e .",
    ]
    assert not (machine.tree / ".venv").exists()
    assert "go together" in machine.set_up(*stack[:2]).stderr


def test_an_aarch64_machine_takes_the_index_s_own_build(machine: Machine) -> None:
    assert machine.set_up(FAKE_MACHINE="aarch64").returncode == 0
    assert machine.installs()[0] == "torch==2.13.0"
    assert not machine.asked("compile -q")


def test_uv_is_told_what_pip_was_told(machine: Machine) -> None:
    done = machine.set_up(
        FAKE_CPU_INDEX="1",
        FAKE_PIP_cert="/etc/own.crt",
        FAKE_PIP_index_url="https://mirror/simple",
        PIP_FIND_LINKS="/wheels /more",
    )
    assert done.returncode == 0, done.stderr
    for word in ("SSL_CERT_FILE=/etc/own.crt", "UV_DEFAULT_INDEX=https://mirror/simple"):
        assert len(machine.asked(word)) == len(machine.asked("uv pip"))
    assert len(machine.asked("UV_FIND_LINKS=/wheels,/more")) == len(machine.asked("uv pip")) - 1  # see below


def test_pinned_packages_come_from_the_index_and_from_extra_ones_what_it_lacks(machine: Machine) -> None:
    """uv would prefer an extra index's pure wheel of a version to the index's own wheel for this machine."""

    def asked_for_pins() -> list[tuple[str, str]]:
        lines = machine.log.read_text().splitlines()
        at = [number for number, line in enumerate(lines) if line.endswith("vllm-0.32.0.txt")]
        return [(lines[number + 3], lines[number + 4]) for number in at]

    extra = {"FAKE_CPU_INDEX": "1", "FAKE_PIP_extra_index_url": "file:///extra", "FAKE_PIP_find_links": "/wheels"}
    machine.set_up("--vllm", "0.32.0", **extra)
    assert asked_for_pins() == [("UV_FIND_LINKS=", "UV_INDEX=")]
    shutil.rmtree(machine.tree / ".venv")
    machine.set_up("--vllm", "0.32.0", FAKE_INDEX_LACKS="1", **extra)
    assert asked_for_pins() == [("UV_FIND_LINKS=", "UV_INDEX="), ("UV_FIND_LINKS=/wheels", "UV_INDEX=file:///extra")]


def test_what_uv_was_told_itself_stays(machine: Machine) -> None:
    machine.set_up(FAKE_CPU_INDEX="1", FAKE_PIP_cert="/etc/own.crt", SSL_CERT_FILE="/etc/other.crt")
    assert machine.asked("SSL_CERT_FILE=/etc/other.crt")
    assert not machine.asked("SSL_CERT_FILE=/etc/own.crt")


def test_without_a_home_to_write_to_caches_are_in_the_tree(machine: Machine) -> None:
    done = machine.set_up(FAKE_CPU_INDEX="1", HOME="/dev/null")
    assert done.returncode == 0, done.stderr
    assert set(machine.asked("XDG_CACHE_HOME")) == {f"XDG_CACHE_HOME={machine.tree}/.venv-cache"}
    assert "/dev/null cannot be written" in done.stderr


def test_a_home_or_a_cache_folder_that_can_be_written_is_used(machine: Machine, tmp_path: Path) -> None:
    assert machine.set_up(FAKE_CPU_INDEX="1").returncode == 0
    assert set(machine.asked("XDG_CACHE_HOME")) == {"XDG_CACHE_HOME="}
    assert (
        machine.set_up(
            "--vllm", "0.33.0", FAKE_CPU_INDEX="1", HOME="/dev/null", XDG_CACHE_HOME=str(tmp_path)
        ).returncode
        == 0
    )
    assert set(machine.asked("XDG_CACHE_HOME")) == {f"XDG_CACHE_HOME={tmp_path}"}


@pytest.mark.parametrize("script", ["demo.sh", "test.sh", "matrix.sh", "setup_env.sh"])
def test_every_entry_looks_for_a_cache_that_can_be_written(script: str) -> None:
    assert "\n. scripts/writable_cache.sh\n" in (ROOT / "scripts" / script).read_text()


def test_an_interrupted_set_up_goes_on_with_the_step_that_it_was_in(machine: Machine) -> None:
    machine.environment["FAKE_CPU_INDEX"] = "1"
    assert machine.set_up(FAKE_DIES_AT="vllm==0.32.0").returncode != 0
    assert not (machine.tree / ".venv" / ".setup-complete").exists()

    assert machine.set_up().returncode == 0
    assert machine.installs() == [
        "--reinstall torch_npu==2.13.0 vllm==0.32.0",
        "--no-build-isolation -e .",
    ]

    assert machine.set_up().returncode == 0
    assert not machine.installs()


def test_pins_that_changed_start_an_interrupted_set_up_over(machine: Machine) -> None:
    machine.environment["FAKE_CPU_INDEX"] = "1"
    machine.set_up(FAKE_DIES_AT="vllm==0.32.0")
    with (machine.tree / "scripts" / "requirements" / "vllm-0.32.0.txt").open("a") as lock:
        lock.write("more==1\n")
    assert machine.set_up().returncode == 0
    assert machine.asked("-m venv")
    assert not machine.asked("--reinstall")


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.environment["FAKE_CPU_INDEX"] = "1"
    assert machine.set_up().returncode == 0
    (machine.tree / ".venv" / "bin" / "python").write_text("#!/nonexistent/python\n")
    assert machine.set_up().returncode == 0
    assert machine.asked("-m venv")


def test_the_first_python_that_runs_and_fits_is_taken(machine: Machine) -> None:
    machine.install("python3.11", "exit 127")  # a shim without a Python behind it
    machine.install("python3.12", machine.python)
    done = machine.set_up(FAKE_VERSION="3.12", FAKE_CPU_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert "virtual environment with Python 3.12" in done.stderr


def test_a_python_of_the_users_choice_is_taken_and_one_that_does_not_fit_is_named(machine: Machine) -> None:
    machine.install("own", machine.python)
    machine.install("python3.11", "exit 127")
    assert machine.set_up(PYTHON=str(machine.path / "own"), FAKE_CPU_INDEX="1").returncode == 0

    (machine.tree / ".venv" / ".setup-complete").unlink()
    (machine.tree / ".venv" / ".setup-steps").unlink()
    done = machine.set_up(PYTHON=str(machine.path / "own"), FAKE_VERSION="3.9")
    assert done.returncode == 1
    assert f"{machine.path / 'own'} is Python 3.9" in done.stderr


def test_without_a_fitting_python_the_error_says_what_was_found(machine: Machine) -> None:
    machine.install("python3.11", "exit 127")
    machine.install("python3.10", machine.python)
    done = machine.set_up(FAKE_VERSION="3.10")
    assert done.returncode == 1
    assert "python3.10 is Python 3.10" in done.stderr
    assert "PYTHON=" in done.stderr
