# SPDX-License-Identifier: Apache-2.0
"""Builds and their cache, with the real compiler on the real C sources and one small C++ source in place of ours."""

import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest

from vllm_ascend_patch.virtual_npu import builder


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the C sources, quick to build, and a cache of its own."""
    copy = tmp_path / "csrc"
    shutil.copytree(builder.SOURCES / "cann", copy / "cann")
    (copy / "torch").mkdir()
    (copy / "torch" / "small.h").write_text("int answer();\n")
    (copy / "torch" / "small.cpp").write_text('#include "small.h"\nint answer() { return 42; }\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "SOURCES", copy)
    return copy


def _build(sources: str, answers: "multiprocessing.Queue[str]") -> None:
    builder.SOURCES = Path(sources)
    answers.put(str(builder.build()))


def test_processes_that_build_at_once_share_one_build(sources: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_build, args=(str(sources), answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=100) for _ in processes}
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    assert len(found) == 1
    directory = Path(found.pop())
    assert (directory / builder.EXTENSION).is_file()
    assert (directory / "lib" / "libascendcl.so").is_file()
    names = {path.name for path in directory.parent.iterdir()}
    assert names == {directory.name, "lock", "objects"}, "nothing half-built stays behind"


def test_a_changed_source_or_header_is_another_build(sources: Path) -> None:
    first = builder.build()
    assert builder.build() == first
    objects = first.parent / "objects"
    assert len(list(objects.iterdir())) == 1
    (sources / "torch" / "small.h").write_text("int answer(); // asked\n")
    second = builder.build()
    assert second != first
    assert len(list(objects.iterdir())) == 2, "a header is part of what includes it"
    (sources / "cann" / "stream.c").open("a").write("\n")
    assert builder.build() not in (first, second)
    assert len(list(objects.iterdir())) == 2, "an unchanged C++ source is not compiled again"


def test_other_wheels_are_another_build(sources: Path) -> None:
    wheels = builder.Wheels.installed()
    other = builder.Wheels(wheels.torch, "1.0", wheels.python)
    assert builder.build_directory(wheels) != builder.build_directory(other)


def test_an_error_in_a_source_is_the_compilers_message(sources: Path) -> None:
    (sources / "torch" / "small.cpp").write_text("int answer() { return fortytwo; }\n")
    with pytest.raises(builder.BuildError, match="fortytwo"):
        builder.build()


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(builder.BuildError, match="torch is not installed for"):
        builder.Wheels.installed()
