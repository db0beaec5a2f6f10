# SPDX-License-Identifier: Apache-2.0
"""The ``plan`` command: whether a model would be served, what fits, and what a deployment will do in its MoE layers and why,
from the model's configuration and a cluster's sizes. Needs no device and no torch; all numbers come from ``core``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.local_checkpoint import LocalCheckpoint, look_at
from vllm_ascend_patch.core.memory_plan import MemoryPlan, memory_plan
from vllm_ascend_patch.core.model_support import Parallelism, latent_release_problem, problems
from vllm_ascend_patch.core.model_traits import traits_of
from vllm_ascend_patch.core.moe.arithmetic import even_parts
from vllm_ascend_patch.core.moe.capacity import Capacity, SchedulerFacts
from vllm_ascend_patch.core.moe.comm import METHODS
from vllm_ascend_patch.core.moe.cost import between_hosts, estimate, links_of
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.limits import MoEFacts, mc2_row_violation, mc2_violations
from vllm_ascend_patch.core.moe.model_facts import ModelFacts, load_config
from vllm_ascend_patch.core.moe.selection import AUTO, check_start_up, regimes, select
from vllm_ascend_patch.core.moe.soc import Soc
from vllm_ascend_patch.core.moe.traffic import distinct_ranks, floor, floor_between_hosts, method_traffic, other_hosts
from vllm_ascend_patch.releases.graphs import full_graph_obstacle
from vllm_ascend_patch.releases.guard import installed_release
from vllm_ascend_patch.releases.latent import first_release, latent_obstacle
from vllm_ascend_patch.releases.modelslim import modelslim_obstacle

from .calling import ImageFile, call, version_number

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
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
    """MiB that a rank sends per layer at one token count, and each method's estimate; None for methods that cannot run.

    The floor is what no method can go below: each token once to every rank that has one of its experts, and one sum back;
    ``floor_skewed`` is that for routing that prefers some experts (``traffic.distinct_ranks``). ``between_hosts`` is what of
    each method's bytes leaves the host, with the floor of that; empty on one host.
    """

    tokens: int
    chosen: str
    floor: float
    floor_skewed: float
    allgather: float
    mc2: float | None
    alltoall: float | None
    hierarchical: float | None
    microseconds: dict[str, float]
    between_hosts: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the command prints.

    ``not_served`` has the messages with which a start would refuse the model; the rest is what would be done if it did not.
    ``served_from`` is the oldest vLLM that serves the model's kind of attention, None where all do; ``checkpoint`` is what
    lies in the model's folder, if it is one.
    """

    not_served: tuple[str, ...]
    model: ModelFacts
    facts: MoEFacts
    scheduler: SchedulerFacts
    capacity: Capacity
    mc2_obstacles: tuple[str, ...]
    regimes: tuple[Regime, ...]
    ranks_per_token: float
    traffic: tuple[TrafficRow, ...]
    expert_mib_per_rank: float
    served_from: str | None = None
    memory: MemoryPlan | None = None
    checkpoint: LocalCheckpoint | None = None


def expert_share(facts: MoEFacts) -> float:
    """Experts of a layer that a rank holds; without expert parallelism every rank has a slice of every one."""
    return facts.local_experts if facts.ep_size > 1 else facts.num_experts / (facts.tp_size * facts.dp_size)


def make_plan(
    model: ModelFacts,
    facts: MoEFacts,
    scheduler: SchedulerFacts,
    forced: str,
    not_served: Sequence[str] = (),
    checkpoint: LocalCheckpoint | None = None,
) -> Plan:
    """Work a plan out; ``MoELimitError`` when the deployment would be refused at start-up."""
    capacity = check_start_up(facts, scheduler, forced)
    any_release = forced == "auto" and not facts.newest_limits
    return Plan(
        not_served=tuple(not_served),
        model=model,
        facts=facts,
        scheduler=scheduler,
        capacity=capacity,
        mc2_obstacles=tuple(map(str, mc2_violations(facts, any_release=any_release))),
        regimes=tuple(_regimes(facts, scheduler, capacity, forced)),
        ranks_per_token=distinct_ranks(facts),
        traffic=tuple(_traffic(facts, scheduler, capacity, forced)),
        expert_mib_per_rank=expert_share(facts) * model.expert_bytes * model.moe_layers / MIB,
        checkpoint=checkpoint,
    )


def _regimes(facts: MoEFacts, scheduler: SchedulerFacts, capacity: Capacity, forced: str) -> list[Regime]:
    modes = [(False, scheduler.max_num_batched_tokens), (True, scheduler.max_captured_tokens)]
    return [
        Regime(
            first=found.first,
            last=found.last,
            captured=captured,
            method=found.choice.method,
            reason=found.choice.reason,
        )
        for captured, most in modes
        if most
        for found in regimes(facts, capacity, most, captured, forced)
    ]


def _traffic(facts: MoEFacts, scheduler: SchedulerFacts, capacity: Capacity, forced: str) -> list[TrafficRow]:
    rows = []
    tokens = 1
    while tokens <= scheduler.max_num_batched_tokens:
        per_rank = -(-tokens // facts.tp_size)
        mc2_runs = not mc2_violations(facts, any_release=False) and mc2_row_violation(facts, per_rank) is None
        several = len(facts.ranks_per_host) > 1
        runs = {"allgather": True, "mc2": mc2_runs, "alltoall": facts.ep_size > 1, "hierarchical": several}
        apart = {m: between_hosts(facts, m, tokens) / MIB for m in METHODS if runs[m]} if several else {}
        if several:
            apart["floor"] = floor_between_hosts(facts, tokens) / MIB
        mib = {m: method_traffic(facts, m, tokens).total / MIB if runs[m] else None for m in METHODS}
        rows.append(
            TrafficRow(
                tokens=tokens,
                chosen=select(facts, capacity, tokens, False, forced).method,
                floor=floor(facts, tokens).total / MIB,
                floor_skewed=floor(facts, tokens, skewed=True).total / MIB,
                allgather=method_traffic(facts, "allgather", tokens).total / MIB,
                mc2=mib["mc2"],
                alltoall=mib["alltoall"],
                hierarchical=mib["hierarchical"],
                microseconds={m: estimate(facts, m, tokens).microseconds for m in METHODS if runs[m]},
                between_hosts=apart,
            )
        )
        tokens *= 4 if tokens < 16 else 2
    return rows


def show(plan: Plan) -> None:
    """Print the plan as tables."""
    from .terminal import console, table

    out = console()
    for problem in plan.not_served:
        out.print(f"Not served: {problem}", markup=False, highlight=False, soft_wrap=True)
    facts, capacity = plan.facts, plan.capacity
    layout = f"TP {facts.tp_size} x DP {facts.dp_size}, EP {facts.ep_size}"
    links = links_of(facts)
    if facts.sequence_parallel:
        layout += ", sequence-parallel MoE"
    model = plan.model
    summary = [
        (
            "model",
            f"{model.name}: {model.moe_layers} MoE layers, {model.num_experts} experts, top-{model.top_k}, "
            f"hidden {model.hidden_size}, intermediate {model.intermediate_size}, " + model.numbers,
        ),
        ("served", "no, as said above" if plan.not_served else "yes, by what its configuration tells"),
        *([("checkpoint", plan.checkpoint.what)] if plan.checkpoint is not None else []),
        *([("vLLM", f"{plan.served_from} or newer, for latent attention (MLA)")] if plan.served_from else []),
        ("cluster", f"{facts.soc.value}, {facts.num_nodes} node(s), {layout}"),
        ("links per NPU", f"{links.inside / 1000:g} GB/s inside a host, {links.between / 1000:g} GB/s to other hosts"),
        (
            "experts per rank",
            f"{facts.local_experts} of {facts.num_experts} physical"
            if facts.ep_size > 1
            else f"a slice of all {facts.num_experts}",
        ),
        ("expert memory per rank", f"{plan.expert_mib_per_rank:,.0f} MiB"),
        *(_memory_rows(plan.memory) if plan.memory else []),
    ]
    if facts.ep_size > 1:
        summary.append(
            ("ranks that a token has to reach", f"{plan.ranks_per_token:.2f} of {facts.ep_size}, routed evenly")
        )
    if facts.ranks_per_host:
        summary.append(("other hosts that a token has to reach", f"{other_hosts(facts):.2f}, routed evenly"))
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
            "Per MoE layer and rank: MiB sent / estimated microseconds (all DP ranks equally full)",
            ("tokens per DP rank", "chosen", "floor", "floor, skewed", *METHODS),
            [
                (
                    str(t.tokens),
                    t.chosen,
                    _mib(t.floor),
                    _mib(t.floor_skewed),
                    *(_figures(t, method) for method in METHODS),
                )
                for t in plan.traffic
            ],
        )
    )
    if facts.ranks_per_host:
        out.print(
            table(
                "Of that, to other hosts: MiB",
                ("tokens per DP rank", "chosen", "floor", *METHODS),
                [(str(t.tokens), t.chosen, *(_between(t, name) for name in ("floor", *METHODS))) for t in plan.traffic],
            )
        )


def _memory_rows(memory: MemoryPlan) -> list[tuple[str, str]]:
    """What a rank's memory holds, in words."""
    cache = f"{memory.cache_per_token / 1024:,.1f} KiB per token and rank"
    if memory.plain_cache_per_token is not None:
        times = memory.plain_cache_per_token / memory.cache_per_token
        cache += (
            f", whatever the number of heads; VLLM_MLA_DISABLE=1: {memory.plain_cache_per_token / 1024:,.1f} KiB "
            f"({times:.1f} times)"
        )
    weights, available = memory.weights / GIB, memory.available / GIB
    fits = f"weights take about {weights:,.1f} of {available:,.1f} GiB"
    if memory.tokens:
        fits += f"; a cache of {memory.tokens:,} tokens per DP rank in the rest, before activations and buffers"
    else:
        fits += ": they do not fit. More ranks, or int8 weights (W8A8), make the share smaller"
    return [("KV cache", cache), ("fits", fits)]


def _figures(row: TrafficRow, method: str) -> str:
    value = getattr(row, method)
    return "-" if value is None else f"{_mib(value)} / {row.microseconds[method]:,.0f}"


def _between(row: TrafficRow, name: str) -> str:
    return _mib(row.between_hosts[name]) if name in row.between_hosts else "-"


def _mib(value: float) -> str:
    return f"{value:,.3f}"


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
    lines = {"allgather": "C0o-", "mc2": "C1s-", "alltoall": "C2^-", "hierarchical": "C3v-"}
    styles = {"floor": "k--", "floor_skewed": "k:", **lines}
    for name, style in styles.items():
        points = [(t, value) for t, row in zip(tokens, plan.traffic, strict=True) if (value := getattr(row, name))]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name.replace("_", ", "), markersize=4)
    colours = {name: style[:2] for name, style in lines.items()}
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
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written ({error.strerror})") from None
    finally:
        pyplot.close(figure)


_COUNT = click.IntRange(min=1)
_MAYBE = click.IntRange(min=0)

MAX_NUM_BATCHED_TOKENS = 2048
"""Of a default ``vllm serve`` on a device with less than 70 GiB, which all of A2 and A3 are."""

MAX_NUM_SEQS = 256
"""Likewise."""

_UTILIZATION = 0.92
"""``--gpu-memory-utilization`` of the newest releases."""

_LARGEST_GRAPH = 512
"""vLLM captures no larger graph unless it is told to."""


def default_captured_tokens(max_num_batched_tokens: int, decoded_tokens: int) -> int:
    """Tokens of the largest graph that a serve without options captures, by the rule of vLLM's newest releases: twice
    what its requests decode in a step, at most 512 and a full step, on a grid that also holds both of these. With drafts
    vLLM takes the next lower multiple of a request's tokens."""
    most = min(2 * decoded_tokens, _LARGEST_GRAPH)
    largest = min(most, max_num_batched_tokens)
    step = 8 if largest < 256 else 16
    grid = largest // step * step if largest >= 8 else max(size for size in (1, 2, 4) if size <= largest)
    exact = [size for size in (max_num_batched_tokens, decoded_tokens) if size <= largest]
    return max([grid, *exact])


@click.command("plan")
@click.argument("model")
@click.option("--tp", type=_COUNT, default=1, show_default=True, help="Tensor parallel ranks.")
@click.option("--dp", type=_COUNT, default=1, show_default=True, help="Data parallel ranks.")
@click.option(
    "--expert-parallel/--no-expert-parallel", default=True, show_default=True, help="Distribute whole experts."
)
@click.option("--soc", type=click.Choice(["A2", "A3"]), default="A3", show_default=True)
@click.option("--nodes", type=_COUNT, default=1, show_default=True, help="Hosts that the ranks span.")
@click.option(
    "--redundant-experts", type=_MAYBE, default=0, show_default=True, help="Replicas for expert load balancing."
)
@click.option(
    "--max-num-batched-tokens",
    type=_COUNT,
    default=MAX_NUM_BATCHED_TOKENS,
    show_default=True,
    help="As in vLLM, per DP rank.",
)
@click.option("--max-num-seqs", type=_COUNT, help=f"As in vLLM, per DP rank.  [default: {MAX_NUM_SEQS}]")
@click.option(
    "--max-model-len", type=_COUNT, help="As in vLLM; sliding windows from it on are served.  [default: the model's]"
)
@click.option(
    "--speculative-tokens", type=_MAYBE, default=0, show_default=True, help="Drafted tokens per request and step."
)
@click.option(
    "--captured-tokens", type=_MAYBE, help="Largest captured graph; 0 for eager.  [default: that of a default serve]"
)
@click.option("--enforce-eager", is_flag=True, help="As in vLLM: no graphs.")
@click.option(
    "--device-memory",
    type=_COUNT,
    default=64,
    show_default=True,
    help="GiB of a device; a default serve takes 92 % of it.",
)
@click.option(
    "--vllm",
    "release",
    callback=version_number,
    help="The vLLM that is to serve.  [default: the installed one, if any]",
)
@click.option("--hccl-buffsize", type=_COUNT, help="HCCL_BUFFSIZE in MiB.  [default: from the environment]")
@click.option("--moe-comm", type=click.Choice([AUTO, *METHODS]), default=AUTO, show_default=True)
@click.option(
    "--links",
    metavar="INSIDE,BETWEEN",
    help="VLLM_ASCEND_PATCH_LINKS: GB/s per NPU inside a host and to other hosts.  [default: from the environment]",
)
@click.option("--operators", type=click.IntRange(1, 2), default=2, show_default=True, help="Dispatch/combine version.")
@click.option("--newest-limits", is_flag=True, help="Trust the newest edition of the operators' limits.")
@click.option("--plot", "plot_path", type=ImageFile(), help="Also draw to this file (PNG, SVG, PDF).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan(
    model: str,
    tp: int,
    dp: int,
    expert_parallel: bool,
    soc: str,
    nodes: int,
    redundant_experts: int,
    max_num_batched_tokens: int,
    max_num_seqs: int | None,
    max_model_len: int | None,
    speculative_tokens: int,
    captured_tokens: int | None,
    enforce_eager: bool,
    device_memory: int,
    release: str | None,
    hccl_buffsize: int | None,
    moe_comm: str,
    links: str | None,
    operators: int,
    newest_limits: bool,
    plot_path: Path | None,
    as_json: bool,
) -> int:
    """Say whether MODEL is served, and which MoE communication method it will use on a cluster, at which token counts, and
    why.

    MODEL is a folder with config.json, such a file, or a model name on the hub. No device is needed. Sizes that are not
    given are those of a default serve, graphs included. The exit code is 1 for what a serve would refuse.
    """
    if enforce_eager and captured_tokens:
        raise click.UsageError(f"--captured-tokens {captured_tokens} is no --enforce-eager: give one of them")
    if (tp * dp) % nodes:
        raise click.UsageError(f"{tp} x {dp} ranks cannot be divided over --nodes {nodes}: take a divisor of {tp * dp}")
    if max_num_seqs is None:
        max_num_seqs = min(MAX_NUM_SEQS, max_num_batched_tokens)
    if max_num_seqs > max_num_batched_tokens:
        raise click.UsageError(
            f"--max-num-seqs {max_num_seqs} do not fit into --max-num-batched-tokens {max_num_batched_tokens}: vLLM "
            "needs a token for each request"
        )
    try:
        config = load_config(model)
        plain = os.environ.get("VLLM_MLA_DISABLE", "0").strip() not in ("", "0")
        traits = traits_of(model, config, mla_disabled=plain)
        checkpoint = look_at(model, config, drafts=speculative_tokens > 0)
        facts_of_model = ModelFacts.from_config(model, config, checkpoint.int8_experts if checkpoint else None)
        if checkpoint is not None and checkpoint.int4_experts:
            facts_of_model = replace(facts_of_model, int4=True)
        experts = facts_of_model.num_experts + redundant_experts
        if expert_parallel and tp * dp > experts:
            raise click.UsageError(
                f"{tp} x {dp} ranks cannot share {experts} experts: at most {experts} ranks, or --no-expert-parallel"
            )
        facts = MoEFacts(
            soc=Soc(soc),
            operator_version=operators,
            tp_size=tp,
            dp_size=dp,
            ep_size=tp * dp if expert_parallel else 1,
            num_experts=experts,
            hidden_size=facts_of_model.hidden_size,
            top_k=facts_of_model.top_k,
            dtype=facts_of_model.dtype,
            num_nodes=nodes,
            hccl_buffsize_mib=_from_environment() if hccl_buffsize is None else hccl_buffsize,
            quantized=facts_of_model.quantized,
            newest_limits=newest_limits,
            # vLLM's rule: sequence-parallel MoE whenever experts are distributed over both TP and DP.
            sequence_parallel=expert_parallel and tp > 1 and dp > 1,
            ranks_per_host=even_parts(tp * dp, nodes) if expert_parallel and nodes > 1 else (),
            links=_links(links),
        )
        release = release or installed_release()
        if captured_tokens is None:
            # A forced method that no graph can capture runs eagerly, and so do drafters where no whole step can be captured.
            eager = enforce_eager or (moe_comm != AUTO and not METHODS[moe_comm].capturable)
            eager = eager or (speculative_tokens > 0 and full_graph_obstacle(release or "", traits.latent) is not None)
            decoded = max_num_seqs * (1 + speculative_tokens)
            captured_tokens = 0 if eager else default_captured_tokens(max_num_batched_tokens, decoded)
        scheduler = SchedulerFacts(max_num_batched_tokens, max_num_seqs, 1 + speculative_tokens, captured_tokens)
        if max_model_len is not None:
            traits = replace(traits, max_model_len=max_model_len)
        refused = list(problems(traits, Parallelism(tp_size=tp, dp_size=dp, expert_parallel=expert_parallel)))
        refused += checkpoint.problems if checkpoint else ()
        too_old = latent_release_problem(traits, latent_obstacle(release)) if release is not None else None
        refused += [too_old] if too_old else []
        if checkpoint is not None and checkpoint.int8_experts is not None and release is not None:
            obstacle = modelslim_obstacle(release)
            refused += [obstacle] if obstacle else []
        made = replace(
            make_plan(facts_of_model, facts, scheduler, moe_comm, refused, checkpoint),
            served_from=first_release() if traits.latent else None,
            memory=memory_plan(
                config, traits, facts_of_model, tp, expert_share(facts), int(device_memory * GIB * _UTILIZATION)
            ),
        )
    except MoEConfigError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(made), default=lambda value: getattr(value, "value", str(value))))
    else:
        show(made)
    if plot_path is not None:
        plot(made, plot_path)
        click.echo(f"plot: {plot_path}", err=True)
    return 1 if made.not_served else 0


def _links(given: str | None) -> tuple[float, float] | None:
    variable = envs.VARIABLES["VLLM_ASCEND_PATCH_LINKS"]
    try:
        return variable.read(None if given is None else {variable.name: given})
    except envs.EnvError as error:
        raise click.UsageError(str(error)) from None


def _from_environment() -> int | None:
    text = os.environ.get("HCCL_BUFFSIZE", "").strip()
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise click.UsageError(f"HCCL_BUFFSIZE={text!r} is not valid: use a whole number of MiB above 0, or unset it")
    return int(text)


def command(argv: Sequence[str]) -> int:
    """Run the command with its arguments; returns the exit code."""
    return call(plan, argv, "plan")
