# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest that runs inside upstream's tests: writes a JSON line when tests are collected, begun and ended.

junit's file is written at the end, and a test that ends its process or is ended by a time limit would leave none. Imports
nothing but pytest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "UPSTREAM_TESTS_RECORD"
"""Environment variable that names the file."""


class Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, **line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(collected=[item.nodeid for item in session.items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._write(test=f"{report.nodeid}::", outcome=report.outcome, words=_words(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="begun", words="")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(test=report.nodeid, outcome=report.outcome, words=_words(report))


def _words(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Why it was skipped, or the error and what else pytest says of it."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(getattr(report, "wasxfail", "")) + str(report.longrepr or "")[-6000:]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(Path(os.environ[VARIABLE])))
