# SPDX-License-Identifier: Apache-2.0
"""The ``plan`` command: what a deployment will do in its MoE layers and why, from a model's configuration and a cluster's
sizes. Needs no device and no torch; all numbers come from ``core/moe``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import click

from vllm_ascend_patch.core.moe.capacity import Capacity, SchedulerFacts
from vllm_ascend_patch.core.moe.comm import METHODS
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.limits import MoEFacts, mc2_row_violation, mc2_violations
from vllm_ascend_patch.core.moe.model_facts import ModelFacts, load_config
from vllm_ascend_patch.core.moe.selection import check_start_up, select
from vllm_ascend_patch.core.moe.soc import Soc
from vllm_ascend_patch.core.moe.traffic import lower_bound, method_traffic

MIB = 1 << 20


@dataclass(frozen=True)
class Regime:
    """A range of token counts with one method.

    Attributes:
        first, last: tokens per DP rank.
        captured: for steps inside a captured graph.
        method, reason: the choice at ``first``.
    """

    first: int
    last: int
    captured: bool
    method: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TrafficRow:
    """MiB that a rank sends per layer at one token count; None for methods that cannot run."""

    tokens: int
    chosen: str
    lower_bound: float
    allgather: float
    mc2: float | None
    alltoall: float | None


@dataclass(frozen=True)
class Plan:
    """Everything that the command prints."""

    model: ModelFacts
    facts: MoEFacts
    scheduler: SchedulerFacts
    sequence_parallel: bool
    capacity: Capacity
    mc2_obstacles: tuple[str, ...]
    regimes: tuple[Regime, ...]
    traffic: tuple[TrafficRow, ...]
    expert_mib_per_rank: float


def make_plan(
    model: ModelFacts, facts: MoEFacts, scheduler: SchedulerFacts, sequence_parallel: bool, forced: str
) -> Plan:
    """Work a plan out; ``MoELimitError`` when the deployment would be refused at start-up."""
    capacity = check_start_up(facts, scheduler, forced)
    any_release = forced == "auto" and not facts.newest_limits
    # Without expert parallelism every rank holds a slice of every expert.
    share = facts.local_experts if facts.ep_size > 1 else facts.num_experts / (facts.tp_size * facts.dp_size)
    return Plan(
        model,
        facts,
        scheduler,
        sequence_parallel,
        capacity,
        tuple(map(str, mc2_violations(facts, any_release=any_release))),
        tuple(_regimes(facts, scheduler, capacity, forced)),
        tuple(_traffic(facts, scheduler, capacity, sequence_parallel, forced)),
        share * model.expert_bytes * model.moe_layers / MIB,
    )


def _regimes(facts: MoEFacts, scheduler: SchedulerFacts, capacity: Capacity, forced: str) -> list[Regime]:
    found: list[Regime] = []
    modes = [(False, scheduler.max_num_batched_tokens), (True, scheduler.max_captured_tokens)]
    for captured, most in modes:
        # Choices change only where the rows per rank pass the capacity.
        edges = sorted({1, min(capacity.tokens + 1, most + 1), most + 1}) if most else []
        for first, after in pairwise(edges):
            choice = select(facts, capacity, first, captured, forced)
            found.append(Regime(first, after - 1, captured, choice.method, choice.reason))
    return found


def _traffic(
    facts: MoEFacts, scheduler: SchedulerFacts, capacity: Capacity, sequence_parallel: bool, forced: str
) -> list[TrafficRow]:
    rows = []
    tokens = 1
    while tokens <= scheduler.max_num_batched_tokens:
        mib = {m: method_traffic(facts, m, tokens, sequence_parallel).total / MIB for m in METHODS}
        per_rank = -(-tokens // facts.tp_size)
        mc2_runs = not mc2_violations(facts, any_release=False) and mc2_row_violation(facts, per_rank) is None
        rows.append(
            TrafficRow(
                tokens=tokens,
                chosen=select(facts, capacity, tokens, False, forced).method,
                lower_bound=lower_bound(facts, tokens).total / MIB,
                allgather=mib["allgather"],
                mc2=mib["mc2"] if mc2_runs else None,
                alltoall=mib["alltoall"] if facts.ep_size > 1 else None,
            )
        )
        tokens *= 4 if tokens < 16 else 2
    return rows


def show(plan: Plan) -> None:
    """Print the plan as tables."""
    from .terminal import console, table

    out = console()
    facts, capacity = plan.facts, plan.capacity
    layout = f"TP {facts.tp_size} x DP {facts.dp_size}, EP {facts.ep_size}"
    if plan.sequence_parallel:
        layout += ", sequence-parallel MoE"
    model = plan.model
    summary = [
        (
            "model",
            f"{model.name}: {model.moe_layers} MoE layers, {model.num_experts} experts, top-{model.top_k}, "
            f"hidden {model.hidden_size}, intermediate {model.intermediate_size}, "
            + ("W8A8" if model.quantized else model.dtype),
        ),
        ("cluster", f"{facts.soc.value}, {facts.num_nodes} node(s), {layout}"),
        (
            "experts per rank",
            f"{facts.local_experts} of {facts.num_experts} physical"
            if facts.ep_size > 1
            else f"a slice of all {facts.num_experts}",
        ),
        ("expert memory per rank", f"{plan.expert_mib_per_rank:,.0f} MiB"),
    ]
    if model.note:
        summary.append(("note", model.note))
    if plan.mc2_obstacles:
        summary += [("MC2 not used", obstacle) for obstacle in plan.mc2_obstacles]
    else:
        summary += [
            ("MC2 capacity", f"{capacity.rows} tokens per rank, {capacity.tokens} per DP rank: {capacity.limited_by}"),
            ("HCCL_BUFFSIZE floor", f"{capacity.hccl_floor_mib} MiB on every rank"),
        ]
    out.print(table("Deployment", ("what", "value"), summary))
    out.print(
        table(
            "Method per step",
            ("tokens per DP rank", "step", "method", "why"),
            [(f"{r.first}..{r.last}", "graph" if r.captured else "eager", r.method, r.reason) for r in plan.regimes],
        )
    )
    out.print(
        table(
            "MiB sent per MoE layer and rank (all DP ranks equally full)",
            ("tokens per DP rank", "chosen", "lower bound", "allgather", "mc2", "alltoall"),
            [
                (str(t.tokens), t.chosen, *(_mib(v) for v in (t.lower_bound, t.allgather, t.mc2, t.alltoall)))
                for t in plan.traffic
            ],
        )
    )


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"


def plot(plan: Plan, path: Path) -> None:
    """Write bytes per layer and rank over tokens, with the chosen method's ranges, to an image file."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise click.ClickException("--plot needs matplotlib: pip install matplotlib") from error

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    tokens = [row.tokens for row in plan.traffic]
    for name, style in (("lower_bound", "k--"), ("allgather", "C0o-"), ("mc2", "C1s-"), ("alltoall", "C2^-")):
        points = [(t, value) for t, row in zip(tokens, plan.traffic, strict=True) if (value := getattr(row, name))]
        if points:
            on_top = 5 if name == "lower_bound" else 2
            axes.plot(*zip(*points, strict=True), style, label=name.replace("_", " "), markersize=4, zorder=on_top)
    colours = {"allgather": "C0", "mc2": "C1", "alltoall": "C2"}
    for regime in plan.regimes:
        if not regime.captured:
            axes.axvspan(regime.first, regime.last + 1, color=colours[regime.method], alpha=0.12)
            axes.annotate(
                f"{regime.method} chosen", (regime.first * 1.1, 0.97), xycoords=("data", "axes fraction"), va="top"
            )
    axes.set(xscale="log", yscale="log", xlabel="tokens per DP rank", ylabel="MiB sent per MoE layer and rank")
    axes.set_title(
        f"{Path(plan.model.name).name} on {plan.facts.soc.value}: TP {plan.facts.tp_size} x DP {plan.facts.dp_size}"
    )
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@click.command("plan")
@click.argument("model")
@click.option("--tp", default=1, show_default=True, help="Tensor parallel ranks.")
@click.option("--dp", default=1, show_default=True, help="Data parallel ranks.")
@click.option(
    "--expert-parallel/--no-expert-parallel", default=True, show_default=True, help="Distribute whole experts."
)
@click.option("--soc", type=click.Choice(["A2", "A3"]), default="A3", show_default=True)
@click.option("--nodes", default=1, show_default=True, help="Hosts that the ranks span.")
@click.option("--redundant-experts", default=0, show_default=True, help="Replicas for expert load balancing.")
@click.option("--max-num-batched-tokens", default=8192, show_default=True, help="As in vLLM, per DP rank.")
@click.option("--max-num-seqs", default=256, show_default=True, help="As in vLLM, per DP rank.")
@click.option("--speculative-tokens", default=0, show_default=True, help="Drafted tokens per request and step.")
@click.option("--captured-tokens", default=0, show_default=True, help="Largest captured graph; 0 for eager.")
@click.option("--hccl-buffsize", type=int, help="HCCL_BUFFSIZE in MiB.  [default: from the environment]")
@click.option("--moe-comm", default="auto", show_default=True, help="auto, allgather, mc2 or alltoall.")
@click.option("--operators", type=click.IntRange(1, 2), default=2, show_default=True, help="Dispatch/combine version.")
@click.option("--newest-limits", is_flag=True, help="Trust the newest edition of the operators' limits.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), help="Also draw to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    model: str,
    tp: int,
    dp: int,
    expert_parallel: bool,
    soc: str,
    nodes: int,
    redundant_experts: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    speculative_tokens: int,
    captured_tokens: int,
    hccl_buffsize: int | None,
    moe_comm: str,
    operators: int,
    newest_limits: bool,
    plot_path: Path | None,
    as_json: bool,
) -> None:
    """Say which MoE communication method MODEL will use on a cluster, at which token counts, and why.

    MODEL is a folder with config.json, such a file, or a model name on the hub. No device is needed.
    """
    if hccl_buffsize is None and os.environ.get("HCCL_BUFFSIZE", "").isdigit():
        hccl_buffsize = int(os.environ["HCCL_BUFFSIZE"])
    try:
        facts_of_model = ModelFacts.from_config(model, load_config(model))
        facts = MoEFacts(
            soc=Soc(soc),
            operator_version=operators,
            tp_size=tp,
            dp_size=dp,
            ep_size=tp * dp if expert_parallel else 1,
            num_experts=facts_of_model.num_experts + redundant_experts,
            hidden_size=facts_of_model.hidden_size,
            top_k=facts_of_model.top_k,
            dtype=facts_of_model.dtype,
            num_nodes=nodes,
            hccl_buffsize_mib=hccl_buffsize,
            quantized=facts_of_model.quantized,
            newest_limits=newest_limits,
        )
        scheduler = SchedulerFacts(max_num_batched_tokens, max_num_seqs, 1 + speculative_tokens, captured_tokens)
        # vLLM's rule: sequence-parallel MoE whenever experts are distributed over both TP and DP.
        plan = make_plan(facts_of_model, facts, scheduler, expert_parallel and tp > 1 and dp > 1, moe_comm)
    except MoEConfigError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(plan), default=lambda value: getattr(value, "value", str(value))))
    else:
        show(plan)
    if plot_path is not None:
        plot(plan, plot_path)
        click.echo(f"plot: {plot_path}", err=True)


def main(argv: Sequence[str]) -> int | None:
    """Run the command with these arguments."""
    return command.main(args=list(argv), prog_name="vllm-ascend-patch plan")
