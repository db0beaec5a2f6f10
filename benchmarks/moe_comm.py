# SPDX-License-Identifier: Apache-2.0
"""Bytes and time of one MoE layer per communication method and token count, against the least that any method must send.

Bytes are what the kernel says the rank's TCP connections carried (TCP_INFO), headers of the transport included: nothing in
the measured code counts for itself. The lower bound is exact for the routing of the run: each copy of a token whose expert
is on another rank travels there once and back once. Times are those of the virtual NPU on this machine: good for
comparing the methods' shape with each other, not for device performance.

    python benchmarks/moe_comm.py --ranks 4 --plot moe_comm.png
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
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.moe.comm import METHODS, make_method
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.limits import MoEFacts, mc2_limits
from vllm_ascend_patch.core.moe.soc import detect_soc, dispatch_operator_version
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology
from vllm_ascend_patch.core.moe.traffic import combine_row_bytes, dispatch_row_bytes, method_traffic

ROWS_AIM = 1.05
FORMULA_AIM = 0.005

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked.
_TCP_INFO_BYTES_ACKED = 120


@dataclass(frozen=True)
class Measurement:
    """One method at one token count, per layer and rank.

    Attributes:
        tokens: rows per rank.
        sent_bytes: mean over ranks of what TCP carried.
        lower_bound: mean over ranks of the bytes that no method can save.
        formula: what ``core/moe/traffic`` predicts for uniform routing.
        collectives: collective and fused operator calls.
        milliseconds: median over repetitions of the slowest rank.
    """

    method: str
    tokens: int
    sent_bytes: float
    lower_bound: float
    formula: float
    collectives: int
    milliseconds: float

    @property
    def ratio(self) -> float:
        """Sent over lower bound."""
        return self.sent_bytes / self.lower_bound if self.lower_bound else float("nan")


def bytes_sent() -> int:
    """Bytes that this process's TCP connections have carried and had acknowledged."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=int(name))
        except OSError:
            continue  # not a socket
        try:
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", info, _TCP_INFO_BYTES_ACKED)[0]
        finally:
            connection.detach()
    return total


class Bench:
    """One rank."""

    def __init__(self, rank: int, options: argparse.Namespace) -> None:
        self.rank, self.options, self.size = rank, options, options.ranks
        self.device = torch.device("npu")
        group = dist.new_group(list(range(self.size)), backend="hccl")
        self.group = group
        axis = ParallelAxis(self.size, rank, group)
        mc2 = Mc2Communicator(group)
        mc2.open()
        if options.layout == "dp":
            self.topology = Topology(ParallelAxis(), axis, axis, mc2=mc2)
        else:
            self.topology = Topology(axis, ParallelAxis(), axis, sequence_parallel=True, mc2=mc2)
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

    def facts(self) -> MoEFacts:
        return MoEFacts(
            soc=detect_soc(),
            operator_version=dispatch_operator_version(),
            tp_size=self.topology.tp.size,
            dp_size=self.topology.dp.size,
            ep_size=self.size,
            num_experts=self.options.experts,
            hidden_size=self.options.hidden,
            top_k=self.options.top_k,
        )

    def measure(self, method_name: str, tokens: int) -> Measurement:
        options = self.options
        method = make_method(method_name, self.topology, self.placement)
        per_dp_rank = tokens * self.topology.tp.size
        step = MoEStep((per_dp_rank,) * self.topology.dp.size, per_dp_rank, method_name)
        hidden = torch.randn(tokens, options.hidden, generator=self.generator).bfloat16().to(self.device)
        scores = torch.rand(tokens, options.experts, generator=self.generator)
        weights, ids = (part.to(self.device) for part in scores.topk(options.top_k, dim=1))

        def layer() -> None:
            fused_moe(method, hidden, weights, ids, self.weights, step)
            torch.npu.synchronize()

        layer()  # connections are made on first use
        idle = self._bytes_of(lambda: None)  # the barriers around a measurement
        self.calls.clear()
        times: list[float] = []
        sent = self._bytes_of(lambda: times.append(_timed(layer)), options.repeat) - idle
        calls = sum(self.calls.values()) // options.repeat
        sent, bound = self._mean(sent / options.repeat), self._mean(self._remote_bytes(ids))
        slowest = torch.tensor(times, device=self.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=self.group)
        formula = method_traffic(self.facts(), method_name, per_dp_rank, self.topology.sequence_parallel).total
        return Measurement(method_name, tokens, sent, bound, formula, calls, median(slowest.tolist()) * 1e3)

    def _remote_bytes(self, ids: torch.Tensor) -> float:
        first = self.placement.first_local
        remote = int(((ids < first) | (ids >= first + self.placement.num_local)).sum())
        return remote * (dispatch_row_bytes(self.facts()) + combine_row_bytes(self.facts()))

    def _bytes_of(self, action: Callable[[], object], times: int = 1) -> float:
        dist.barrier(group=self.group)
        before = bytes_sent()
        for _ in range(times):
            action()
        dist.barrier(group=self.group)
        time.sleep(0.05)  # the last acknowledgements
        return bytes_sent() - before

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


def run_rank(rank: int, size: int, options: argparse.Namespace) -> None:
    with torch.inference_mode():
        bench = Bench(rank, options)
        found = []
        most = mc2_limits(bench.facts()).max_rows
        for tokens in options.tokens:
            for method in METHODS:
                if method != "mc2" or tokens <= most:
                    found.append(bench.measure(method, tokens))
    if rank == 0:
        report(found, bench.facts(), options)


def report(found: list[Measurement], facts: MoEFacts, options: argparse.Namespace) -> None:
    print(
        f"{facts.soc.value}, {options.ranks} ranks ({options.layout}), {facts.num_experts} experts, top-{facts.top_k}, "
        f"hidden {facts.hidden_size}, bf16; per layer and rank"
    )
    print(
        f"{'tokens':>7} {'method':>10} {'sent KiB':>11} {'bound KiB':>11} {'ratio':>6} {'formula':>8} {'calls':>6} {'ms':>8}"
    )
    for m in found:
        against_formula = m.sent_bytes / m.formula
        print(
            f"{m.tokens:>7} {m.method:>10} {m.sent_bytes / 1024:>11.1f} {m.lower_bound / 1024:>11.1f} {m.ratio:>6.3f} "
            f"{against_formula:>8.3f} {m.collectives:>6} {m.milliseconds:>8.2f}"
        )
    figures = {}
    for method in METHODS:
        series = sorted((m for m in found if m.method == method), key=lambda m: m.tokens)
        if len(series) > 1:
            figures[method] = bytes_per_added_row(series[0], series[-1])
    if options.json:
        options.json.write_text(json.dumps([asdict(m) for m in found], indent=1))
    if options.plot:
        plot(found, options.plot)
    bounded = {method: figure for method, figure in figures.items() if method != "allgather"}
    gathered = figures.get("allgather", float("nan"))
    print(f"allgather over its formula, per added row: {gathered:.4f} (aim: 1 within {FORMULA_AIM:.1%})")
    for method, figure in bounded.items():
        print(f"{method} over the lower bound, per added row: {figure:.4f} (aim: at most {ROWS_AIM})")
    met = abs(gathered - 1) <= FORMULA_AIM and all(figure <= ROWS_AIM for figure in bounded.values())
    times = {f"{m.method}-{m.tokens}": round(m.milliseconds, 2) for m in found}
    summary = {
        "name": "moe_comm",
        "figures": {
            "bytes_per_added_row": {k: round(v, 4) for k, v in figures.items()},
            "milliseconds": times,
            "met": met,
        },
        "ratio": round(max(bounded.values(), default=float("nan")), 4),
        "goal": ROWS_AIM,
    }
    print(json.dumps(summary))


def bytes_per_added_row(few: Measurement, many: Measurement) -> float:
    """Sent bytes over the lower bound's (AllGather: over its formula's), per added row.

    Between two token counts the transport's own headers, which do not grow, cancel out.
    """
    sent = many.sent_bytes - few.sent_bytes
    if many.method == "allgather":
        return sent / (many.formula - few.formula)
    return sent / (many.lower_bound - few.lower_bound)


def plot(found: list[Measurement], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bytes_axes, time_axes) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for method in METHODS:
        series = [m for m in found if m.method == method]
        tokens = [m.tokens for m in series]
        bytes_axes.plot(tokens, [m.sent_bytes / 2**20 for m in series], "o-", label=method, markersize=4)
        time_axes.plot(tokens, [m.milliseconds for m in series], "o-", label=method, markersize=4)
    bound = {m.tokens: m.lower_bound / 2**20 for m in found if m.method == "alltoall"}
    bytes_axes.plot(list(bound), list(bound.values()), "k--", label="lower bound", zorder=5)
    bytes_axes.set(ylabel="MiB sent per layer and rank (measured)")
    time_axes.set(ylabel="ms per layer (virtual NPU, this machine)")
    for axes in (bytes_axes, time_axes):
        axes.set(xscale="log", yscale="log", xlabel="tokens per rank")
        axes.legend()
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4, help="processes, one per virtual device (default 4)")
    parser.add_argument("--layout", choices=("dp", "sp"), default="dp", help="data parallel, or sequence-parallel TP")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 32, 64, 128, 256], help="per rank")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--plot", type=Path, help="draw bytes and times to this file")
    options = parser.parse_args()
    values_of(run_ranks(run_rank, options.ranks, options, group="hccl", together=True, timeout=600))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
