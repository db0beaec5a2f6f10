# SPDX-License-Identifier: Apache-2.0
"""Bytes and time of one MoE layer per communication method and token count, against the floor that no method can go below.

Bytes are what the kernel says the rank's TCP connections carried (TCP_INFO), headers of the transport included: nothing in
the measured code counts for itself. The floor is exact for the routing of the run: each token once to every other rank that
has one of its experts, and one sum back. With --hosts, ranks are taken to be on as many hosts, in rank order, and what went
between them is counted apart, against each token once to every other host that has one of its experts, and one sum back.
Times are those of the virtual NPU on this machine: good for comparing the methods'
shape with each other, not for device performance.

Three figures are judged. What AllToAll sends over the floor, per added row. What Hierarchical sends to other hosts over the
floor of that. And what the automatic choice costs over the cheapest method that it may take, where costs are those of
``core/moe/cost`` with the measured bytes in place of formulas.

    python benchmarks/moe_comm.py --ranks 4 --top-k 8 --tokens 1 4 16 32 64 128 256 --plot moe_comm.png
"""

from __future__ import annotations

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=8, soc="A3")  # before torch, which loads torch_npu

import argparse
import json
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.moe.arithmetic import even_parts
from vllm_ascend_patch.core.moe.capacity import SchedulerFacts
from vllm_ascend_patch.core.moe.comm import METHODS, make_method
from vllm_ascend_patch.core.moe.cost import LINKS, estimate
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.limits import MoEFacts, mc2_row_violation, mc2_violations
from vllm_ascend_patch.core.moe.selection import check_start_up, select
from vllm_ascend_patch.core.moe.soc import Soc, dispatch_operator_version
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology
from vllm_ascend_patch.core.moe.traffic import combine_row_bytes, dispatch_row_bytes, method_traffic

FLOOR_AIM = 1.05
FORMULA_AIM = 0.005
AUTO_AIM = 1.1
ROUTINGS = ("uniform", "skewed")

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked.
_TCP_INFO_BYTES_ACKED = 120


@dataclass(frozen=True)
class Measurement:
    """One method at one token count, per layer and rank.

    Attributes:
        ranks: expert parallel ranks.
        hosts: that they are taken to be on.
        top_k: experts per token.
        routing: ``uniform``, or ``skewed``: expert i drawn with a weight of 1 / (i + 1).
        tokens: rows per rank.
        sent_bytes: mean over ranks of what TCP carried.
        floor: mean over ranks of the bytes that no method can save.
        between, floor_between: the same to other hosts.
        formula: what ``core/moe/traffic`` predicts for uniform routing.
        collectives: collective and fused operator calls.
        milliseconds: median over repetitions of the slowest rank.
    """

    ranks: int
    hosts: int
    top_k: int
    routing: str
    method: str
    tokens: int
    sent_bytes: float
    floor: float
    between: float
    floor_between: float
    formula: float
    collectives: int
    milliseconds: float

    @property
    def ratio(self) -> float:
        """Sent over floor."""
        return self.sent_bytes / self.floor if self.floor else float("nan")

    @property
    def series(self) -> tuple[int, int, int, str, str]:
        """What is the same for all token counts of a line."""
        return self.ranks, self.hosts, self.top_k, self.routing, self.method


Address = tuple[str, int]


def connections() -> dict[tuple[Address, Address], int]:
    """Bytes that each of this process's TCP connections, by its two ends, has carried and had acknowledged."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=int(name))
        except OSError:
            continue  # not a socket
        try:
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                ends = _address(connection.getsockname()), _address(connection.getpeername())
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                found[ends] = struct.unpack_from("Q", info, _TCP_INFO_BYTES_ACKED)[0]
        except OSError:
            continue  # it listens
        finally:
            connection.detach()
    return found


def _address(end: Any) -> Address:
    return str(end[0]).removeprefix("::ffff:"), end[1]


class Bench:
    """One rank."""

    def __init__(self, rank: int, size: int, hosts: int, options: argparse.Namespace) -> None:
        self.rank, self.options, self.size = rank, options, size
        self.device = torch.device("npu")
        group = dist.new_group(list(range(self.size)), backend="hccl")
        self.group = group
        axis = ParallelAxis(self.size, rank, group)
        mc2 = Mc2Communicator(group)
        mc2.open()
        self.hosts = even_parts(size, hosts)
        self.host_of = [host for host, ranks in enumerate(self.hosts) for _ in range(ranks)]
        alone = ParallelAxis()
        tp, dp = (alone, axis) if options.layout == "dp" else (axis, alone)
        known = self.hosts if hosts > 1 else ()
        self.topology = Topology(tp, dp, axis, options.layout == "sp", mc2, known)
        self.control = dist.new_group(list(range(size)), backend="gloo")
        self.placement = ExpertPlacement.linear(options.experts, self.size, rank)
        generator = torch.Generator().manual_seed(rank)
        local, hidden, inner = self.placement.num_local, options.hidden, options.intermediate
        w13 = torch.randn(local, 2 * inner, hidden, generator=generator) * hidden**-0.5
        w2 = torch.randn(local, hidden, inner, generator=generator) * inner**-0.5
        self.weights = ExpertWeights.from_loaded(
            w13.bfloat16().to(self.device), w2.bfloat16().to(self.device), activation="silu"
        )
        self.generator = generator
        self.calls: Counter[str] = Counter()
        self._count_calls()

    def measure(self, method_name: str, tokens: int, top_k: int, routing: str) -> Measurement:
        options = self.options
        method = make_method(method_name, self.topology, self.placement)
        per_dp_rank = tokens * self.topology.tp.size
        step = MoEStep((per_dp_rank,) * self.topology.dp.size, per_dp_rank, method_name)
        hidden = torch.randn(tokens, options.hidden, generator=self.generator).bfloat16().to(self.device)
        drawn = torch.rand(tokens, options.experts, generator=self.generator)
        if routing == "skewed":
            drawn = drawn.pow(torch.arange(1, options.experts + 1))  # the largest are K draws with the weights
        weights, ids = (part.to(self.device) for part in drawn.topk(top_k, dim=1))

        def layer() -> None:
            fused_moe(method, hidden, weights, ids, self.weights, step)
            torch.npu.synchronize()

        layer()  # connections are made on first use
        elsewhere = self._peers_on_other_hosts()
        idle = self._bytes_of(lambda: None, elsewhere)  # the barriers around a measurement
        self.calls.clear()
        times: list[float] = []
        sent = self._bytes_of(lambda: times.append(_timed(layer)), elsewhere, options.repeat)
        sent, between = ((s - i) / options.repeat for s, i in zip(sent, idle, strict=True))
        calls = sum(self.calls.values()) // options.repeat
        facts = facts_of(options, Soc.A3, self.size, len(self.hosts), top_k)
        row = dispatch_row_bytes(facts) + combine_row_bytes(facts)
        floor = self._reached(ids, list(range(self.size)), {self.rank}) * row
        floor_between = self._reached(ids, self.host_of, {self.host_of[self.rank]}) * row
        slowest = torch.tensor(times, device=self.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=self.group)
        formula = method_traffic(facts, method_name, per_dp_rank).total
        time_ms = median(slowest.tolist()) * 1e3
        return Measurement(
            self.size,
            len(self.hosts),
            top_k,
            routing,
            method_name,
            tokens,
            sent_bytes=self._mean(sent),
            floor=self._mean(floor),
            between=self._mean(between),
            floor_between=self._mean(floor_between),
            formula=formula,
            collectives=calls,
            milliseconds=time_ms,
        )

    def _reached(self, ids: torch.Tensor, place_of: list[int], own: set[int]) -> int:
        """Pairs of a token and a place, of the places of all ranks, that has one of its experts and is not its own."""
        owners = [place for place, count in zip(place_of, self.placement.counts, strict=True) for _ in range(count)]
        return sum(len({owners[expert] for expert in row} - own) for row in ids.cpu().tolist())

    def _peers_on_other_hosts(self) -> set[Address]:
        """Ends of connections that are another host's."""
        mine = [ours for ours, _ in connections()]
        ends: list[Any] = [None] * self.size
        dist.all_gather_object(ends, mine, group=self.control)
        here = self.host_of[self.rank]
        return {end for rank, those in enumerate(ends) if self.host_of[rank] != here for end in those}

    def _bytes_of(self, action: Callable[[], object], elsewhere: set[Address], times: int = 1) -> tuple[float, float]:
        """What is sent to all ranks and to those of other hosts."""
        dist.barrier(group=self.group)
        before = connections()
        for _ in range(times):
            action()
        dist.barrier(group=self.group)
        time.sleep(0.05)  # the last acknowledgements
        added = {ends: sent - before.get(ends, 0) for ends, sent in connections().items()}
        return sum(added.values()), sum(sent for (_, peer), sent in added.items() if peer in elsewhere)

    def _mean(self, value: float) -> float:
        total = torch.tensor([value], device=self.device, dtype=torch.float32)
        dist.all_reduce(total, group=self.group)
        return float(total) / self.size

    def _count_calls(self) -> None:
        import torch_npu

        import vllm_ascend_patch.core.moe.comm.collectives as collectives

        def counted(function: Any, name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.calls[name] += 1
                return function(*args, **kwargs)

            return call

        collectives._all_gather = counted(collectives._all_gather, "all_gather")
        collectives._reduce_scatter = counted(collectives._reduce_scatter, "reduce_scatter")
        for module, name in (
            (dist, "all_to_all_single"),
            (dist, "all_reduce"),
            (torch_npu, "npu_moe_distribute_dispatch_v2"),
            (torch_npu, "npu_moe_distribute_combine_v2"),
        ):
            setattr(module, name, counted(getattr(module, name), name))


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def facts_of(options: argparse.Namespace, soc: Soc, ranks: int, hosts: int, top_k: int) -> MoEFacts:
    over_tp = options.layout == "sp"
    return MoEFacts(
        soc=soc,
        operator_version=dispatch_operator_version(),
        tp_size=ranks if over_tp else 1,
        dp_size=1 if over_tp else ranks,
        ep_size=ranks,
        num_experts=options.experts,
        hidden_size=options.hidden,
        top_k=top_k,
        hccl_buffsize_mib=8192,
        newest_limits=True,
        sequence_parallel=over_tp,
        num_nodes=hosts,
        ranks_per_host=even_parts(ranks, hosts) if hosts > 1 else (),
    )


def run_rank(rank: int, size: int, hosts: int, options: argparse.Namespace) -> list[Measurement]:
    with torch.inference_mode():
        bench = Bench(rank, size, hosts, options)
        return [
            bench.measure(method, tokens, top_k, routing)
            for top_k in options.top_k
            for routing in options.routing
            for tokens in options.tokens
            for method in METHODS
            if _runs(method, facts_of(options, Soc.A3, size, hosts, top_k), tokens)
        ]


def _runs(method: str, facts: MoEFacts, rows: int) -> bool:
    if method == "hierarchical":
        return bool(facts.ranks_per_host)
    return method != "mc2" or not _mc2_refuses(facts, rows)


def _mc2_refuses(facts: MoEFacts, rows: int) -> bool:
    return bool(mc2_violations(facts, any_release=False)) or mc2_row_violation(facts, rows) is not None


def report(found: list[Measurement], options: argparse.Namespace) -> None:
    print(
        f"{options.layout}, {options.experts} experts, hidden {options.hidden}, bf16; per layer and rank. Formulas are for "
        "uniform routing"
    )
    print(
        f"{'EP':>3} {'hosts':>5} {'top':>4} {'routing':>8} {'tokens':>7} {'method':>12} "
        f"{'sent KiB':>11} {'floor KiB':>11} {'ratio':>6} "
        f"{'formula':>8} {'to hosts KiB':>13} {'floor KiB':>11} {'calls':>6} {'ms':>8}"
    )
    for m in found:
        print(
            f"{m.ranks:>3} {m.hosts:>5} {m.top_k:>4} {m.routing:>8} {m.tokens:>7} {m.method:>12} "
            f"{m.sent_bytes / 1024:>11.1f} {m.floor / 1024:>11.1f} {m.ratio:>6.3f} {m.sent_bytes / m.formula:>8.3f} "
            f"{m.between / 1024:>13.1f} {m.floor_between / 1024:>11.1f} {m.collectives:>6} {m.milliseconds:>8.2f}"
        )
    over_floor = _per_added_row(found, lambda m: (m.sent_bytes, m.floor))
    between = _per_added_row([m for m in found if m.hosts > 1], lambda m: (m.between, m.floor_between))
    gathered = _per_added_row(found, lambda m: (m.sent_bytes, m.formula))["allgather"]
    if options.json:
        options.json.write_text(json.dumps([asdict(m) for m in found], indent=1))
    if options.plot:
        plot(found, options.plot)
    for method, figures in over_floor.items():
        aim = f" (aim: at most {FLOOR_AIM})" if method == "alltoall" else ""
        print(f"{method} over the floor, per added row: {min(figures):.4f} to {max(figures):.4f}{aim}")
    for method, figures in between.items():
        aim = f" (aim: at most {FLOOR_AIM})" if method == "hierarchical" else ""
        print(f"{method} to other hosts over the floor, per added row: {min(figures):.4f} to {max(figures):.4f}{aim}")
    off = max(abs(figure - 1) for figure in gathered)
    print(f"allgather over its formula, per added row: off by {off:.2%} at most (aim: {FORMULA_AIM:.1%})")
    auto, where = worst_choice(found, options)
    print(f"auto over the cheapest allowed method: {auto:.4f} at worst (aim: at most {AUTO_AIM}){where}")
    floor = max(over_floor["alltoall"])
    at_floor = floor <= FLOOR_AIM and max(between.get("hierarchical", [1.0])) <= FLOOR_AIM
    summary = {
        "name": "moe_comm",
        "figures": {
            "over_floor": {method: round(max(figures), 4) for method, figures in over_floor.items()},
            "over_floor_between_hosts": {method: round(max(figures), 4) for method, figures in between.items()},
            "allgather_off_formula": round(off, 5),
            "auto_over_cheapest": round(auto, 4),
            "met": at_floor and off <= FORMULA_AIM and auto <= AUTO_AIM,
        },
        "ratio": round(floor, 4),
        "goal": FLOOR_AIM,
    }
    print(json.dumps(summary))


def _per_added_row(
    found: list[Measurement], figures: Callable[[Measurement], tuple[float, float]]
) -> dict[str, list[float]]:
    """By method: the first of ``figures`` over the second, per added row, for every line of the method.

    Between two token counts the transport's own headers, which do not grow, cancel out.
    """
    lines: dict[tuple[int, int, int, str, str], list[Measurement]] = {}
    for m in found:
        lines.setdefault(m.series, []).append(m)
    ratios: dict[str, list[float]] = {}
    for line in lines.values():
        few, many = min(line, key=_tokens), max(line, key=_tokens)
        sent, least = (more - less for more, less in zip(figures(many), figures(few), strict=True))
        ratios.setdefault(many.method, []).append(sent / least if least else float("nan"))
    return ratios


def _tokens(measurement: Measurement) -> int:
    return measurement.tokens


def worst_choice(found: list[Measurement], options: argparse.Namespace) -> tuple[float, str]:
    """The cost of the automatic choice over that of the cheapest method measured, at its worst, and where that is."""
    worst, where = 1.0, ""
    for soc in Soc:
        steps: dict[tuple[int, int, int, str, int], dict[str, float]] = {}
        for m in found:
            facts = facts_of(options, soc, m.ranks, m.hosts, m.top_k)
            cost = estimate(facts, m.method, m.tokens * facts.tp_size).fixed_us + m.between / LINKS[soc].between
            cost += (m.sent_bytes - m.between) / LINKS[soc].inside
            if _runs(m.method, facts, m.tokens):
                steps.setdefault((m.ranks, m.hosts, m.top_k, m.routing, m.tokens), {})[m.method] = cost
        for (ranks, hosts, top_k, routing, tokens), costs in steps.items():
            facts = facts_of(options, soc, ranks, hosts, top_k)
            per_dp_rank = tokens * facts.tp_size
            capacity = check_start_up(facts, SchedulerFacts(per_dp_rank, per_dp_rank))
            chosen = select(facts, capacity, per_dp_rank, captured=False).method
            ratio = costs[chosen] / min(costs.values())
            if ratio > worst:
                worst, where = (
                    ratio,
                    f": {soc.value}, EP {ranks} on {hosts}, top-{top_k}, {routing}, {tokens} tokens, {chosen}",
                )
    return worst, where


def plot(found: list[Measurement], path: Path) -> None:
    """Bytes and times of the first line of each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = found[0].series[:4]
    found = [m for m in found if m.series[:4] == first]
    figure, (bytes_axes, time_axes) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for method in {m.method: None for m in found}:
        series = [m for m in found if m.method == method]
        tokens = [m.tokens for m in series]
        bytes_axes.plot(tokens, [m.sent_bytes / 2**20 for m in series], "o-", label=method, markersize=4)
        time_axes.plot(tokens, [m.milliseconds for m in series], "o-", label=method, markersize=4)
    floor = {m.tokens: m.floor / 2**20 for m in found if m.method == "alltoall"}
    bytes_axes.plot(list(floor), list(floor.values()), "k--", label="floor", zorder=5)
    bytes_axes.set(ylabel="MiB sent per layer and rank (measured)")
    time_axes.set(ylabel="ms per layer (virtual NPU, this machine)")
    figure.suptitle("EP {} on {} hosts, top-{}, {} routing".format(*first))
    for axes in (bytes_axes, time_axes):
        axes.set(xscale="log", yscale="log", xlabel="tokens per rank")
        axes.legend()
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="processes, one per virtual device")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2], help="that ranks are taken to be on")
    parser.add_argument("--layout", choices=("dp", "sp"), default="dp", help="data parallel, or sequence-parallel TP")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 256], help="per rank")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--routing", choices=ROUTINGS, nargs="+", default=list(ROUTINGS))
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--plot", type=Path, help="draw bytes and times to this file")
    options = parser.parse_args()
    found: list[Measurement] = []
    for ranks, hosts in product(options.ranks, options.hosts):
        if hosts == 1 or ranks >= 2 * hosts:
            found += values_of(run_ranks(run_rank, ranks, hosts, options, group="hccl", together=True, timeout=900))[0]
    report(found, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
