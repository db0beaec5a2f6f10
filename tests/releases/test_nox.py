# SPDX-License-Identifier: Apache-2.0
"""What ``nox -s test`` makes of a selection: one that selects nothing is an error, one half without a test is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.environment import ROOT

nox_command = pytest.importorskip("nox.command")


class Session:
    """Takes what the session would run, and answers with these exit codes of pytest, one after the other."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def run(self, *command: str, **options: Any) -> None:
        code = self.codes.pop(0)
        if code not in options.get("success_codes", [0]):
            raise nox_command.CommandFailed(f"Returned code {code}", return_code=code)

    def error(self, words: str) -> None:
        raise RuntimeError(words)


@pytest.fixture(scope="module")
def select() -> Callable[..., None]:
    """``select(session, *arguments)`` runs what nox makes of pytest's arguments."""
    spec = importlib.util.spec_from_file_location("noxfile_of_this_tree", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    noxfile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(noxfile)
    return lambda session, *arguments: noxfile._tests(session, "python", list(arguments))


def test_a_selection_without_any_test_is_an_error(select: Callable[..., None]) -> None:
    with pytest.raises(RuntimeError, match="no test was selected by -k typo"):
        select(Session(5, 5), "-k", "typo")


def test_a_path_without_any_selected_test_is_an_error(select: Callable[..., None]) -> None:
    with pytest.raises(RuntimeError, match="no test was selected"):
        select(Session(5), "tests/releases", "-k", "typo")


@pytest.mark.parametrize("codes", [(0, 5), (5, 0), (0, 0)])
def test_one_half_may_be_without_a_test(select: Callable[..., None], codes: tuple[int, int]) -> None:
    select(Session(*codes), "-k", "graphs")


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (5, 2)])
def test_a_failing_half_fails(select: Callable[..., None], codes: tuple[int, int]) -> None:
    with pytest.raises(nox_command.CommandFailed):
        select(Session(*codes), "-k", "graphs")
