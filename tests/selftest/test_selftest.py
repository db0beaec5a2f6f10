# SPDX-License-Identifier: Apache-2.0
"""The command ``selftest`` on virtual NPUs: everything holds, and what is broken on purpose is named."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.environment import ROOT, clean_environment
from tests.support.npus import virtual_npu_command
from tests.support.processes import run
from vllm_ascend_patch.commands import selftest
from vllm_ascend_patch.selftest.result import Result

#: Read, not imported: the module needs torch_npu.
OPERATORS = (ROOT / "vllm_ascend_patch" / "selftest" / "operators.py").read_text()

_WRONG_SWIGLU = '''
import importlib.machinery
import sys


class Loader:
    """The module of reference kernels that runs on the virtual NPU, with one of them wrong."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        right = module.swiglu
        module.swiglu = lambda *args, **kwargs: right(*args, **kwargs) * 1.1


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "vllm_ascend_virtual_npu.kernels.activation":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = Loader(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())
'''


def on_virtual_npus(
    *options: str, report: Path, devices: int = 2, seconds: float = 280, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The command's end, and its report."""
    arguments = [sys.executable, "-m", "vllm_ascend_patch", "selftest", "--report", str(report), *options]
    command = virtual_npu_command(arguments, devices, "A3")
    done = run(command, seconds=seconds, environment=clean_environment(**environment))
    return done, json.loads(report.read_text()) if report.exists() else {}


def test_every_operator_that_the_package_calls_is_tried() -> None:
    sources = [
        *(ROOT / "vllm_ascend_patch" / "core").rglob("*.py"),
        *(ROOT / "vllm_ascend_patch" / "npu").rglob("*.py"),
        *(ROOT / "vllm_ascend_patch" / "seams").rglob("*.py"),
    ]
    called = {name for path in sources for name in re.findall(r"torch_npu\.(npu_\w+)\(", path.read_text())}
    assert len(called) > 10
    communicating = {name for name in called if name.startswith("npu_moe_distribute_")}
    tried = set(re.findall(r'"(npu_\w+)"', OPERATORS.partition("CALLED = (")[2].partition(")")[0]))
    assert called - communicating == tried


def test_everything_holds_on_virtual_npus(tmp_path: Path) -> None:
    done, report = on_virtual_npus(report=tmp_path / "report.json", seconds=300)
    output = done.stdout + (done.stderr or "")
    assert done.returncode == 0, output[-6000:]
    assert report["ok"] is True
    assert (report["devices"], report["npus"]) == (2, "virtual")
    assert {result["part"] for result in report["results"]} == set(selftest.PARTS)
    names = {(result["part"], result["name"]) for result in report["results"]}
    assert {("operators", "npu_swiglu"), ("device", "graph update"), ("ranks", "step sync, auto")} <= names
    assert {("ranks", "MoE by mc2, EP 2, int8"), ("model", "tokens of a tiny Qwen3-MoE")} <= names
    found = {result["name"]: result["found"] for result in report["results"]}
    assert re.fullmatch(r"\d+ us of host time per step", found["step sync, device"])
    assert found["step sync, auto"].startswith("takes ")
    assert re.fullmatch(r"\d+ clear choices of 96 tokens, all as transformers'", found["tokens of a tiny Qwen3-MoE"])
    text = json.dumps(report)
    assert socket.gethostname() not in text
    assert not re.search(r"\d+\.\d+\.\d+\.\d+|/tmp|/home|/root", text)
    assert "All" in output
    assert "checks hold" in output


def test_a_wrong_kernel_makes_it_fail_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WRONG_SWIGLU)
    path = f"{ROOT}:{tmp_path}"
    done, report = on_virtual_npus("--part", "operators", report=tmp_path / "report.json", devices=1, PYTHONPATH=path)
    assert done.returncode == 1, done.stdout[-6000:]
    assert [result["name"] for result in report["results"] if not result["ok"]] == ["npu_swiglu"]
    assert "do not hold: npu_swiglu." in done.stdout


@pytest.mark.slow
def test_a_wrong_kernel_changes_the_tiny_models_tokens(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WRONG_SWIGLU.replace("* 1.1", "* -1.0"))
    path = f"{ROOT}:{tmp_path}"
    done, report = on_virtual_npus("--part", "model", report=tmp_path / "report.json", devices=1, PYTHONPATH=path)
    assert done.returncode == 1, done.stdout[-6000:]
    (result,) = report["results"]
    assert re.search(r"token \d+ after a prompt of \d+ is \d+ instead of \d+", result["found"]), result


@pytest.mark.slow
def test_everything_holds_on_four_virtual_npus(tmp_path: Path) -> None:
    done, report = on_virtual_npus(report=tmp_path / "report.json", devices=4, seconds=280)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "MoE by mc2, EP 4, int8" in {result["name"] for result in report["results"]}


# Without devices ------------------------------------------------------------------------------------------------------


def test_ranks_are_put_together_and_the_first_failure_of_a_check_stays() -> None:
    ranks = [
        [Result("ranks", "all_reduce", True, "fine"), Result("ranks", "barrier", True, "met")],
        [Result("ranks", "all_reduce", False, "wrong")],
    ]
    assert selftest._together(ranks) == [
        Result("ranks", "all_reduce", False, "rank 1: wrong"),
        Result("ranks", "barrier", True, "met"),
    ]


def test_a_report_has_no_host_address_or_path() -> None:
    said = f"lost {socket.gethostname()} at 10.1.2.3:2900 or [fe80::1%eth0]:4 in /opt/some/where/file.py:12, 3/4 done"
    assert selftest._anonymous(said) == "lost HOST at ADDRESS or ADDRESS:4 in file.py:12, 3/4 done"


def test_more_devices_than_there_are_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_devices", lambda: 2)
    done = CliRunner().invoke(selftest.selftest, ["--devices", "3"])
    assert done.exit_code == 2
    assert "3 NPUs were asked for, there are 2" in done.output


def test_without_torch_npu_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')\n")
    environment = clean_environment(PYTHONPATH=f"{tmp_path}:{ROOT}", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    command = [sys.executable, "-m", "vllm_ascend_patch", "selftest"]
    done = run(command, seconds=100, environment=environment)
    assert done.returncode == 1
    assert "no NPU: ImportError: libhccl.so: cannot open shared object file" in done.stdout + (done.stderr or "")
