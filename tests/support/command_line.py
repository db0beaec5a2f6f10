# SPDX-License-Identifier: Apache-2.0
"""Calls a command of the command line as ``__main__`` does, in this process, and keeps what it printed."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from unittest import mock


class Called(NamedTuple):
    """A command that was called: its exit code and what it printed."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Standard output, then errors."""
        return self.stdout + self.stderr


def called(
    command: Callable[[Sequence[str]], int], *arguments: object, environment: Mapping[str, str] | None = None
) -> Called:
    """``command`` with ``arguments``, as text, and ``environment`` added to this process's."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment or {}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        code = command([str(argument) for argument in arguments])
    return Called(code, out.getvalue(), errors.getvalue())
