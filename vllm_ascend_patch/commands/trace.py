# SPDX-License-Identifier: Apache-2.0
"""The ``trace`` command: what the ranks' traces say about waiting, padding and communication methods.

Reads the files that ``trace.py`` writes. Drawing needs matplotlib, which is imported only then.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from .calling import ImageFile, call

Event = dict[str, Any]

_SHOWN_US = 500e3
"""What the drawn time line covers."""


class TraceError(ValueError):
    """A file is not a trace of this package."""


def read_trace(path: Path) -> list[Event]:
    """The events of one rank's file; the trace of a killed process, which ends anywhere, included.

    Raises:
        TraceError: no such trace.
    """
    try:
        text = path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    if not text.startswith("["):
        raise TraceError(f"{path}: not a trace; expected a file written with VLLM_ASCEND_PATCH_TRACE")
    events = []
    for number, line in enumerate(text.splitlines()[1:], 2):
        line = line.rstrip().rstrip(",")
        if line in ("", "]"):
            continue
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            if number == text.count("\n") + 1:
                break  # the process was killed while writing the last line
            event = None
        if not (isinstance(event, dict) and {"name", "ph"} <= event.keys()):
            raise TraceError(f"{path}: line {number} is not an event")
        events.append(event)
    return events


@dataclass
class RankSummary:
    """One rank's numbers. Times in microseconds.

    Attributes:
        waits: host time blocked for the other ranks' vectors, one per collective, ``main`` steps that were posted early.
        hidden: host time between post and wait of the same steps.
        direct_waits: the same wait for dummy steps and drafters, which have nothing to hide behind.
        tokens, padded: rows that belonged to requests, rows run.
        phases: durations per traced phase.
        methods: communication methods, forwards each was chosen for.
    """

    rank: int
    label: str = ""
    waits: list[float] = field(default_factory=list)
    hidden: list[float] = field(default_factory=list)
    direct_waits: list[float] = field(default_factory=list)
    steps: int = 0
    idle_steps: int = 0
    tokens: int = 0
    padded: int = 0
    phases: dict[str, list[float]] = field(default_factory=dict)
    methods: Counter[str] = field(default_factory=Counter)

    @property
    def hidden_share(self) -> float | None:
        """Share of the time from post to agreement during which the host did other work; None without such steps."""
        total = sum(self.waits) + sum(self.hidden)
        return sum(self.hidden) / total if total else None

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / self.padded if self.padded else 0.0


def summarise(events: Sequence[Event]) -> RankSummary:
    """Fold one rank's events."""
    summary = RankSummary(rank=next((int(e["pid"]) for e in events if "pid" in e), 0))
    for event in events:
        args = event.get("args", {})
        name = event["name"]
        if event["ph"] == "M" and name == "process_name":
            summary.label = args["name"]
        elif event["ph"] == "i" and name == "moe":
            summary.methods[args.get("method", "?")] += 1
        elif event["ph"] == "X":
            summary.phases.setdefault(name, []).append(event["dur"])
            if name == "wait":
                _fold_wait(summary, event["dur"], args)
    return summary


def _fold_wait(summary: RankSummary, duration: float, args: dict[str, Any]) -> None:
    if args.get("early"):
        summary.waits.append(duration)
        summary.hidden.append(args.get("hidden_us", 0.0))
    else:
        summary.direct_waits.append(duration)
    if args.get("kind") == "main":
        summary.steps += 1
        summary.idle_steps += bool(args.get("idle"))
        summary.tokens += args.get("tokens", 0)
        summary.padded += args.get("padded", 0)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie, interpolated. 0 for no values."""
    if len(values) < 2:
        return float(values[0]) if values else 0.0
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, max(0, round(share * 1000) - 1))]


def as_dict(summary: RankSummary) -> dict[str, Any]:
    """The summary as plain data, for ``--json``."""
    return {
        "rank": summary.rank,
        "label": summary.label,
        "steps": summary.steps,
        "idle_steps": summary.idle_steps,
        "wait_us": {f"p{p}": round(percentile(summary.waits, p / 100), 1) for p in (50, 90, 99)},
        "direct_wait_us": {f"p{p}": round(percentile(summary.direct_waits, p / 100), 1) for p in (50, 90, 99)},
        "hidden_share": None if summary.hidden_share is None else round(summary.hidden_share, 3),
        "padding_share": round(summary.padding_share, 3),
        "methods": dict(summary.methods),
        "phases_us": {
            name: {
                "count": len(values),
                "p50": round(percentile(values, 0.5), 1),
                "p99": round(percentile(values, 0.99), 1),
            }
            for name, values in sorted(summary.phases.items())
        },
    }


def _print(summaries: Sequence[RankSummary]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Step sync by rank (microseconds of host time)")
    columns = ("rank", "steps", "idle", "wait p50", "p90", "p99", "hidden", "idle/draft wait p50", "padding", "methods")
    for column in columns:
        table.add_column(column, justify="left" if column in ("rank", "methods") else "right")
    for summary in summaries:
        share = summary.hidden_share
        table.add_row(
            summary.label or str(summary.rank),
            str(summary.steps),
            str(summary.idle_steps),
            *(f"{percentile(summary.waits, p):.0f}" for p in (0.5, 0.9, 0.99)),
            "-" if share is None else f"{share:.0%}",
            f"{percentile(summary.direct_waits, 0.5):.0f}",
            f"{summary.padding_share:.0%}",
            ", ".join(f"{name} {count}" for name, count in summary.methods.most_common()) or "-",
        )
    Console(width=max(Console().width, 120)).print(table)


def plot(summaries: Sequence[RankSummary], traces: Sequence[Sequence[Event]], target: Path) -> None:
    """Draw a time line of the last steps of every rank and the distribution of waits.

    Raises:
        TraceError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise TraceError("-o needs matplotlib, which is not installed: pip install matplotlib") from None
    names = ("prepare inputs", "wait", "forward", "sample", "dummy")
    colours = dict(zip(names, ("tab:blue", "tab:red", "tab:green", "tab:orange", "lightgrey"), strict=True))
    figure, (line, spread) = plt.subplots(2, 1, figsize=(12, 3 + 0.6 * len(traces) + 3), layout="constrained")
    spans = [e for events in traces for e in events if e["ph"] == "X"]
    busy = [e for e in spans if e["name"] == "sample"] or spans
    end = max((e["ts"] + e["dur"] for e in busy), default=0.0)
    begin = max(min((e["ts"] for e in spans), default=0.0), end - _SHOWN_US)
    for row, events in enumerate(traces):
        for name in ("dummy", *names[:-1]):  # dummies contain the others: draw them first
            bars = [((e["ts"] - begin) / 1e3, e["dur"] / 1e3) for e in events if e["ph"] == "X" and e["name"] == name]
            visible = [bar for bar in bars if bar[0] >= 0 and sum(bar) <= (end - begin) / 1e3]
            line.broken_barh(visible, (row - 0.4, 0.8), facecolors=colours[name], label=name if row == 0 else None)
    line.set_yticks(range(len(summaries)), [s.label or str(s.rank) for s in summaries])
    line.set_xlabel("milliseconds (the last half second that ends in a step of real work)")
    line.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False)
    for summary in summaries:
        values = sorted(summary.waits)
        if values:
            spread.plot(values, [(i + 1) / len(values) for i in range(len(values))], label=summary.label)
    spread.set_xscale("log")
    spread.set_xlabel("wait for the other ranks' vectors, early-posted steps (us)")
    spread.set_ylabel("share of steps")
    if spread.lines:
        spread.legend()
    try:
        figure.savefig(target, dpi=120)
    except OSError as error:
        raise TraceError(f"{target} cannot be written ({error.strerror})") from None
    finally:
        plt.close(figure)


@click.command("trace")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=ImageFile(), help="Draw the traces into this file (PNG, SVG, PDF).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def trace(files: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Summarise the traces that the ranks wrote (VLLM_ASCEND_PATCH_TRACE): wait percentiles, share hidden behind input
    preparation, padding, methods."""
    try:
        traces = [read_trace(path) for path in files]
        summaries = [summarise(events) for events in traces]
        if output is not None:
            plot(summaries, traces, output)
    except TraceError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([as_dict(s) for s in summaries], indent=1))
    else:
        _print(summaries)


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments; returns the exit code."""
    return call(trace, argv, "trace")
