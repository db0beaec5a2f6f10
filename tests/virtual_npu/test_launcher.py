# SPDX-License-Identifier: Apache-2.0
"""The command ``virtual-npu`` as a user meets it: each test starts it anew."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.environment import ROOT, clean_environment
from vllm_ascend_patch.virtual_npu import profile

from .launch import launcher, python

SHOW = """
import json, torch, torch_npu
print("RESULT", json.dumps({
    "available": torch.npu.is_available(), "count": torch.npu.device_count(), "name": torch.npu.get_device_name(0),
    "soc": torch_npu.npu.get_soc_version(), "memory": torch.npu.mem_get_info(),
    "sum": torch.arange(4.0, device="npu").sum().item(),
}))
"""


def result(text: str) -> dict[str, object]:
    line = next(line for line in text.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))


@pytest.mark.parametrize(("soc", "name", "version"), [("A2", "Ascend910B1", 220), ("A3", "Ascend910_9391", 250)])
def test_the_machine_is_the_one_asked_for(soc: str, name: str, version: int) -> None:
    done = python(SHOW, "--devices", "3", "--soc", soc, "--memory", "512MiB")
    assert done.returncode == 0, done.stderr
    memory = 512 * 1024**2
    assert result(done.stdout) == {
        "available": True,
        "count": 3,
        "name": name,
        "soc": version,
        "memory": [memory, memory],
        "sum": 6.0,
    }


def test_canns_python_module_counts_the_devices_as_ray_does() -> None:
    show = "import acl, sys; print(acl.rt.get_device_count(), acl.get_soc_name(), 'torch' in sys.modules)"
    assert python(show, "--devices", "3", "--soc", "A3").stdout == "(3, 0) Ascend910_9391 False\n"
    one = python(f"import os; os.environ['ASCEND_RT_VISIBLE_DEVICES'] = '2'; {show}", "--devices", "3")
    assert one.stdout == "(1, 0) Ascend910B1 False\n"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_that_the_command_starts_have_the_machine_too(method: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing\n"
        "def child():\n"
        "    import torch\n"
        "    assert torch.npu.device_count() == 3\n"
        "    assert torch.ones(2, device='npu:2').sum().item() == 2\n"
        "if __name__ == '__main__':\n"
        f"    process = multiprocessing.get_context('{method}').Process(target=child)\n"
        "    process.start(); process.join(60); print('EXIT', process.exitcode)\n"
    )
    done = launcher(["--devices", "3", "--", sys.executable, str(script)])
    assert "EXIT 0" in done.stdout, done.stdout + done.stderr


def test_the_exit_code_is_the_commands_own() -> None:
    assert launcher(["--", sys.executable, "-c", "raise SystemExit(7)"]).returncode == 7


def test_allocating_past_the_memory_raises_torch_npus_own_out_of_memory_error() -> None:
    # torch_npu's allocator rounds large blocks up to 2 MiB and adds its own padding: 102 MiB for 100.
    code = (
        "import torch\n"
        "kept = torch.empty(100 << 20, dtype=torch.uint8, device='npu')\n"
        "try: torch.empty(100 << 20, dtype=torch.uint8, device='npu')\n"
        "except RuntimeError as error: print(type(error).__name__, error)\n"
        "try: kept.float() + 1\n"
        "except RuntimeError as error: print('OPERATOR', error)\n"
        "del kept\n"
        "print('AGAIN', torch.empty(100 << 20, dtype=torch.uint8, device='npu').numel())\n"
    )
    done = python(code, "--memory", "128MiB")
    error = "RuntimeError" if torch.__version__ < "2.8" else "OutOfMemoryError"  # torch_npu's own choice
    assert f"{error} NPU out of memory. Tried to allocate 102.00 MiB" in done.stdout, done.stdout + done.stderr
    assert "OPERATOR NPU out of memory" in done.stdout
    assert f"AGAIN {100 << 20}" in done.stdout


def test_options_without_a_value_keep_the_outer_machine() -> None:
    inner = [
        sys.executable,
        "-m",
        "vllm_ascend_patch",
        "virtual-npu",
        "--devices",
        "4",
        "--",
        sys.executable,
        "-c",
        SHOW,
    ]
    done = launcher(["--soc", "A3", "--memory", "256MiB", "--", *inner])
    assert done.returncode == 0, done.stderr
    shown = result(done.stdout)
    assert (shown["count"], shown["name"], shown["memory"]) == (4, "Ascend910_9391", [256 * 1024**2] * 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "0", "--", "true"], "1 to 64 NPUs, not 0"),
        (["--devices", "many", "--", "true"], "'many' is not a number of devices"),
        (["--memory", "lots", "--", "true"], "'lots' is not an amount of memory"),
        (["--memory", "1MiB", "--", "true"], "at least 64MiB"),
        (["--soc", "A5", "--", "true"], "'A5' is not one of 'A2', 'A3'"),
        (["--cann", "7", "--", "true"], "'7' is not one of '8.5', '9.1'"),
        (["--", "no-such-command-anywhere"], "there is no command 'no-such-command-anywhere'"),
        ([], "Missing argument 'COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(arguments: list[str], said: str) -> None:
    done = launcher(arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_compiler_the_error_says_so(tmp_path: Path) -> None:
    environment = clean_environment(XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path))
    done = launcher(["build"], environment=environment)
    assert done.returncode == 1
    assert "virtual-npu: no compiler: cc or gcc or clang is not on PATH" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_written_is_one_error_that_says_what_to_set() -> None:
    environment = {
        name: value for name, value in clean_environment(HOME="/dev/null").items() if name != "XDG_CACHE_HOME"
    }
    done = launcher(["build"], environment=environment)
    assert done.returncode == 1
    assert "virtual-npu: the build is kept in /dev/null/.cache/" in done.stderr
    assert "set XDG_CACHE_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_torch_npu_the_error_says_so(tmp_path: Path) -> None:
    for folder in (Path(entry) for entry in sys.path if "site-packages" in entry):
        for entry in folder.iterdir():
            link = tmp_path / entry.name
            if not entry.name.startswith("torch_npu") and not link.exists():
                link.symlink_to(entry)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "vllm_ascend_patch", "virtual-npu", "--", "true"],
        cwd=ROOT,
        env=clean_environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "virtual-npu: torch_npu is not installed for" in done.stderr, done.stderr
    assert "pip install --no-deps" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failing_compiler_is_shown_with_its_output(tmp_path: Path) -> None:
    compiler = tmp_path / "broken-cc"
    compiler.write_text("#!/bin/sh\necho 'the disk is full' >&2\nexit 3\n")
    compiler.chmod(0o755)
    environment = clean_environment(XDG_CACHE_HOME=str(tmp_path / "cache"), CC=str(compiler))
    done = launcher(["build"], environment=environment)
    assert done.returncode == 1
    assert "the compiler failed with status 3" in done.stderr
    assert "the disk is full" in done.stderr
    left = list((tmp_path / "cache" / "vllm_ascend_patch" / "virtual_npu").iterdir())
    assert [path.name for path in left] == ["lock"], "a failed build leaves nothing that looks like one"


def test_another_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('THEIRS')\n")
    done = python("print('MINE')", PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == ["THEIRS", "THEIRS", "MINE"], (
        done.stderr
    )  # the launcher's own start, then the command's


def test_importing_the_package_loads_nothing_of_the_virtual_npu() -> None:
    code = (
        "import sys, os; os.environ['VLLM_ASCEND_PATCH'] = '0'\n"
        "import vllm_ascend_patch\n"
        "print('LOADED', [name for name in sys.modules if 'virtual_npu' in name or name == 'torch'])\n"
    )
    done = launcher(["--", sys.executable, "-c", code])
    assert "LOADED []" in done.stdout, done.stdout + done.stderr


def test_other_wheels_than_the_build_was_made_for_are_refused(tmp_path: Path) -> None:
    code = (
        "import json, os, pathlib, shutil\n"
        "runtime = pathlib.Path(os.environ['VIRTUAL_NPU_RUNTIME'])\n"
        f"copy = pathlib.Path({str(tmp_path / 'runtime')!r}); shutil.copytree(runtime, copy)\n"
        "facts = json.loads((copy / 'build.json').read_text()); facts['torch_npu'] = '1.0'\n"
        "(copy / 'build.json').write_text(json.dumps(facts))\n"
        "os.environ['VIRTUAL_NPU_RUNTIME'] = str(copy)\n"
        "import torch\n"
    )
    done = python(code)
    assert done.returncode != 0
    assert "this virtual NPU was built for torch_npu 1.0 but" in done.stderr


@given(
    st.builds(
        profile.Profile,
        devices=st.integers(1, profile.MAX_DEVICES),
        soc=st.sampled_from(["A2", "A3"]),
        memory_bytes=st.integers(64 * 1024**2, 2**45),
    )
)
def test_a_profile_survives_the_environment(machine: profile.Profile) -> None:
    environment: dict[str, str] = {}
    machine.export(environment)
    assert profile.current(environment) == machine


@pytest.mark.parametrize(
    ("text", "value"), [("8GiB", 8 << 30), ("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5G", 3 << 29), ("123", 123)]
)
def test_amounts_of_memory(text: str, value: int) -> None:
    assert profile.parse_memory(text) == value


def test_the_python_on_the_path_is_not_needed() -> None:
    """The launcher finds its interpreter's wheels, not those of whatever ``python`` is."""
    path = os.pathsep.join(filter(None, [os.path.dirname(shutil.which("sh") or "/bin/sh")]))
    done = launcher(["--", sys.executable, "-c", SHOW], environment=clean_environment(PATH=path))
    assert done.returncode == 0, done.stderr
