# SPDX-License-Identifier: Apache-2.0
"""How every command is called: ``command(argv) -> exit code``, and the kinds of arguments that several of them take.

Exit codes: 0 as asked, 1 the answer is no or the work failed, 2 the command line is wrong. What is wrong is said in one
line, before any work; there are no tracebacks for input. Knows no command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from packaging.version import InvalidVersion, Version

FORMATS = (".png", ".svg", ".pdf")


def call(command: click.Command, argv: Sequence[str], name: str) -> int:
    """Run a click command as ``vllm-ascend-patch NAME``; what it returns is the exit code, None is 0."""
    try:
        result = command.main(args=list(argv), prog_name=f"vllm-ascend-patch {name}", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0


class ImageFile(click.Path):
    """A picture to be written: in a folder that exists and can be written, with an ending that says its format."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in FORMATS:
            self.fail(f"{path} says no format that can be drawn: it has to end in {', '.join(FORMATS)}", param, ctx)
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            self.fail(f"{path.parent} is no folder that can be written: make it, or name another file", param, ctx)
        return path


def version_number(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The callback of an option that takes a version, as it is written."""
    try:
        if value is not None:
            Version(value)
    except InvalidVersion:
        raise click.BadParameter(f"{value!r} is no version; write one like 1.2.3", ctx, param) from None
    return value
