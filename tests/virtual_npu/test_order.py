# SPDX-License-Identifier: Apache-2.0
"""The check of order (``--check-order``): racy programs are caught where they are racy, their repaired twins are silent."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import result_of, under_virtual_npu

from . import racy_programs, racy_ranks
from .launch import python

pytestmark = pytest.mark.usefixtures("npu")

CHECK = {"VIRTUAL_NPU_CHECK_ORDER": "line"}
SCHEDULES = 2000


@pytest.fixture(scope="module")
def checked() -> dict[str, Any]:
    """Everything of one process, in one process."""
    done = under_virtual_npu("-m", "tests.virtual_npu.racy_programs", str(SCHEDULES), environment=CHECK, seconds=300)
    found: dict[str, Any] = result_of(done)
    return found


def marked(function: Any, mark: str) -> str:
    """``file:line in function`` of the line with ``# mark``."""
    lines, first = inspect.getsourcelines(function)
    offset = next(i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))
    return f"{Path(inspect.getfile(function)).name}:{first + offset} in {function.__name__}"


@pytest.mark.parametrize("name", racy_programs.PROGRAMS)
def test_a_racy_program_is_caught_with_both_call_sites(name: str, checked: dict[str, Any]) -> None:
    program, error = racy_programs.PROGRAMS[name], checked["programs"][name][""]
    assert error is not None, "not caught"
    assert "virtual-npu --check-order: " in error, error
    assert program.says in error
    for mark in ("earlier", "later"):
        assert marked(program.run, mark) in error, error


@pytest.mark.parametrize(
    ("name", "repair"), [(name, repair) for name, p in racy_programs.PROGRAMS.items() for repair in p.repairs]
)
def test_a_repaired_program_is_silent(name: str, repair: str, checked: dict[str, Any]) -> None:
    assert checked["programs"][name][repair] is None


def test_random_schedules_are_judged_as_by_the_oracle(checked: dict[str, Any]) -> None:
    counts = checked["schedules"]
    assert counts["schedules"] >= SCHEDULES
    assert SCHEDULES // 4 < counts["racy"] < 3 * SCHEDULES // 4, "schedules must be of both kinds"


def test_an_asynchronous_copy_of_pageable_memory_is_warned_of_once_with_its_call_site(checked: dict[str, Any]) -> None:
    assert checked["copies"]["pinned"] == []
    (warning,) = checked["copies"]["pageable"]
    assert "aten::copy_ is asked for without blocking, but its host memory is pageable" in warning
    assert marked(racy_programs.warnings_of_a_copy, "copied") in warning


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, list[str]]]:
    done = under_virtual_npu("-m", "tests.virtual_npu.racy_ranks", "2", devices=2, soc="A3", environment=CHECK)
    found: list[dict[str, list[str]]] = result_of(done)
    return found


def test_one_communicator_on_two_streams_is_caught(ranks: list[dict[str, list[str]]]) -> None:
    for rank in ranks:
        silent, error = rank["on_two_streams"]
        assert silent == ""
        assert "two calls of communicator virtual_hccl_" in error
        for mark in ("earlier", "later"):
            assert marked(racy_ranks.on_two_streams, mark).replace("(", "") in error, error


def test_communicators_that_ranks_call_in_another_order_are_caught(ranks: list[dict[str, list[str]]]) -> None:
    ends = [rank["communicators_in_another_order"] for rank in ranks]
    assert [silent for silent, _ in ends] == ["", ""]
    assert all("virtual-npu --check-order: rank " in error for _, error in ends), ends
    assert any("ranks must call the communicators that they share in one order" in error for _, error in ends)


def test_whole_stacks_are_shown_when_asked_for() -> None:
    code = (
        "import torch\n"
        "def outer():\n    inner()\n"
        "def inner():\n    x.fill_(1)\n"
        "x = torch.zeros(4, device='npu')\n"
        "torch.npu.synchronize()\n"
        "with torch.npu.stream(torch.npu.Stream()): outer()\n"
        "x + 1\n"
    )
    found = {}
    for option in ("--check-order", "--order-stacks"):
        done = python(code, option)
        assert done.returncode != 0
        found[option] = done.stderr
    assert "<string>:5 in inner" in found["--check-order"].partition("later:")[0]
    assert "<string>:3 in outer" in found["--order-stacks"].partition("later:")[0]


def test_without_the_option_nothing_is_checked() -> None:
    code = "import torch, sys; print(sys.modules['_virtual_npu'].checks_order())"
    assert python(code).stdout.split() == ["False"]
    assert python(code, "--check-order").stdout.split() == ["True"]


def test_an_unknown_way_to_check_is_refused() -> None:
    done = under_virtual_npu("-c", "import torch", environment={"VIRTUAL_NPU_CHECK_ORDER": "yes"})
    assert "VIRTUAL_NPU_CHECK_ORDER='yes': expected line or stack" in done.stdout + (done.stderr or "")
