# SPDX-License-Identifier: Apache-2.0
"""Printing for the command line: tables with colour on a terminal, plain text elsewhere. Knows nothing of what it
prints."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES = {
    "ok": "green",
    "fits": "green",
    "applied": "green",
    "would apply": "green",
    "warning": "yellow",
    "drifted": "yellow",
    "unknown": "yellow",
    "refused": "red",
    "failed": "red",
    "gone": "red",
    "fail": "red",
}


def console() -> Console:
    """Standard output; wide enough not to fold tables when it is not a terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=160, no_color=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose cells are plain text; the words of verdicts and states are coloured."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", expand=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return made
