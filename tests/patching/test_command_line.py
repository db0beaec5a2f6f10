# SPDX-License-Identifier: Apache-2.0
"""Every command is called alike, and a wrong argument of any is one line with the right name before it, exit code 2."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.command_line import called
from tests.support.environment import ROOT, without_devices
from vllm_ascend_patch import __main__ as command_line
from vllm_ascend_patch.commands import trace, upstream

NAMES = ("docs", "doctor", "plan", "selftest", "trace", "upstream", "virtual-npu")
EVENT = {"name": "wait", "ph": "X", "ts": 1.0, "dur": 2.0, "pid": 0}


def test_the_commands_are_these() -> None:
    assert set(command_line.cli.commands) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_takes_its_arguments_and_returns_its_exit_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = import_module(command_line.cli.commands[name].module, "vllm_ascend_patch").command  # type: ignore[attr-defined]
    assert list(inspect.signature(command).parameters) == ["argv"]
    assert command(["--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: vllm-ascend-patch {name} ")
    assert command(["--no-such-option"] + (["--"] if name == "virtual-npu" else [])) != 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "trace.rank0.json"
    file.write_text("[\n" + json.dumps(EVENT) + ",\n")
    return file


WRONG = [
    ("trace", "", "Missing argument 'FILES...'"),
    ("trace", "/nonexistent/trace.json", "'/nonexistent/trace.json' does not exist"),
    ("trace", "{folder}", "'{folder}' is a directory"),
    ("trace", "{file} -o /nonexistent/x.png", "/nonexistent is no folder that can be written"),
    ("trace", "{file} -o {folder}/x.foo", "x.foo says no format that can be drawn: it has to end in .png, .svg, .pdf"),
    ("trace", "{file} -o {folder}", "'{folder}' is a directory"),
    ("plan", "", "Missing argument 'MODEL'"),
    ("docs", "", "Missing argument 'FILES...'"),
    ("docs", "/nonexistent.md", "'/nonexistent.md' does not exist"),
    ("upstream", "record", "name the releases to record, or give --all"),
    ("upstream", "check {folder} --release newest", "'newest' is no version"),
    ("selftest", "--part everything", "'everything' is not one of 'operators', 'device', 'ranks'"),
    ("doctor", "model now", "Got unexpected extra argument (now)"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG, ids=[f"{name} {words}" for name, words, _ in WRONG])
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    name: str, arguments: str, message: str, file: Path, tmp_path: Path
) -> None:
    values = {"file": str(file), "folder": str(tmp_path)}
    words = [word.format(**values) for word in arguments.split()]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_ascend_patch", name, *words],
        cwd=ROOT,
        env=without_devices(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"Usage: vllm-ascend-patch {name} ")
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert message.format(**values) in error


@pytest.mark.parametrize("line", ["[1]", '{"name": "wait"}', "3"])
def test_a_line_of_a_trace_that_is_no_event_is_named(file: Path, line: str) -> None:
    file.write_text(f"[\n{line},\n{json.dumps(EVENT)},\n")
    done = called(trace.command, file)
    assert (done.exit_code, done.stderr) == (1, f"Error: {file}: line 2 is not an event\n")


def test_a_picture_that_cannot_be_written_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    done = called(trace.command, file, "-o", file.with_name("x.png"))
    assert done.exit_code == 1
    assert done.stderr == f"Error: {file.with_name('x.png')} cannot be written (No space left on device)\n"


def test_a_record_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")

    def refuse(record: object) -> Path:
        raise PermissionError(13, "Permission denied", "/read/only.json")

    monkeypatch.setattr(upstream.records.STORE, "write", refuse)
    done = called(upstream.command, "record", tmp_path, "--release", "9.9.9")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: the record cannot be written: ")
