# SPDX-License-Identifier: Apache-2.0
"""What the host does per MoE layer of a decode step around the vendor's operators and collectives, per method.

One layer is run once while torch's dispatcher is watched: every call is counted, and those of vendor operators and
collectives are kept with their arguments. Then the layer is timed, and so are the kept calls alone, the bare operators. The
difference is what preparing, dispatching, combining and finalizing cost the host; a real decode step is bound by the host.

    python benchmarks/moe_host_cost.py
"""

from __future__ import annotations

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=2, soc="A3")  # before torch, which loads torch_npu

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.moe.comm import METHODS, make_method
from vllm_ascend_patch.core.moe.cost import LAUNCHES
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology

RANKS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 2, 8, 2, 1024, 64
GOAL = 1.25
# Rows per rank of a decode step: all ranks alike, and one with fewer, which has to be filled up to the others.
STEPS = {"even": (32, 32), "uneven": (32, 20)}
KINDS = {"bf16": False, "w8a8": True}


@dataclass(frozen=True)
class Cost:
    """One layer of one method, on the rank that has more to do.

    Attributes:
        vendor_calls: vendor operators and collectives.
        kernels: other operators that launch something on the device.
        views: operators that only look at a tensor differently.
        allocations: blocks asked of the device allocator.
        layer_us, bare_us: median time of the layer, and of its vendor calls alone.
    """

    vendor_calls: int
    kernels: int
    views: int
    allocations: int
    layer_us: float
    bare_us: float

    @property
    def ratio(self) -> float:
        """The layer over its bare operators."""
        return self.layer_us / self.bare_us


class Watch(TorchDispatchMode):
    """Counts dispatcher calls; keeps those of vendor operators and collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.vendor: list[Callable[[], Any]] = []
        self.kernels: list[str] = []
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("npu", "c10d"):
            self.vendor.append(lambda: func(*args, **kwargs))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if aliases and _memory(result) == _memory(args[0]):
            self.views += 1
            return result
        on_device = any(
            tensor.device.type == "npu" for tensor in tree_leaves((args, result)) if torch.is_tensor(tensor)
        )
        if on_device and not str(func).startswith(("aten.empty", "aten.new_empty")):
            self.kernels.append(str(func))
        return result


def _memory(value: Any) -> int:
    first = value[0] if isinstance(value, (list, tuple)) else value
    return first.untyped_storage().data_ptr()


def replay(calls: list[Callable[[], Any]]) -> None:
    """Make the calls again, waiting for each collective as torch.distributed does."""
    for call in calls:
        result = call()
        work = result[-1] if isinstance(result, tuple) else result
        if isinstance(work, torch.ScriptObject):
            work.wait()


def measure(method_name: str, quantized: bool, tokens: tuple[int, ...], topology: Topology, repeat: int) -> Cost:
    rank = topology.ep.rank
    placement = ExpertPlacement.linear(EXPERTS, RANKS, rank)
    generator = torch.Generator().manual_seed(rank)
    w13 = torch.randn(placement.num_local, 2 * INTERMEDIATE, HIDDEN, generator=generator) * HIDDEN**-0.5
    w2 = torch.randn(placement.num_local, HIDDEN, INTERMEDIATE, generator=generator) * INTERMEDIATE**-0.5
    weights = _w8a8(w13, w2) if quantized else _bf16(w13, w2)
    hidden = torch.randn(tokens[rank], HIDDEN, generator=generator).bfloat16().to("npu")
    scores = torch.rand(tokens[rank], EXPERTS, generator=generator).topk(TOP_K, dim=1)
    topk_weights, topk_ids = scores.values.to("npu"), scores.indices.to(torch.int32).to("npu")
    method, step = make_method(method_name, topology, placement), MoEStep(tokens, tokens[rank], method_name)

    def layer() -> None:
        fused_moe(method, hidden, topk_weights, topk_ids, weights, step)

    for _ in range(3):  # communicators and constants are made on first use
        layer()
    before = torch.npu.memory_stats()["allocation.all.allocated"]
    layer()
    allocations = torch.npu.memory_stats()["allocation.all.allocated"] - before
    with Watch() as watch:
        layer()
    bare = watch.vendor
    layer_us, bare_us = _times(layer, lambda: replay(bare), repeat)
    if os.environ.get("SHOW_KERNELS"):
        print(rank, method_name, tokens, watch.kernels, file=sys.stderr)
    return Cost(len(bare), len(watch.kernels), watch.views, allocations, layer_us, bare_us)


def _bf16(w13: torch.Tensor, w2: torch.Tensor) -> ExpertWeights:
    return ExpertWeights.from_loaded(w13.bfloat16().to("npu"), w2.bfloat16().to("npu"), activation="silu")


def _w8a8(w13: torch.Tensor, w2: torch.Tensor) -> ExpertWeights:
    scales = [weight.abs().amax(-1) / 127 for weight in (w13, w2)]
    int8 = [(w / s.unsqueeze(-1)).round().to(torch.int8).to("npu") for w, s in zip((w13, w2), scales, strict=True)]
    w13_scale, w2_scale = (scale.to("npu") for scale in scales)
    return ExpertWeights.from_loaded(
        *int8, activation="silu", w13_scale=w13_scale, w2_scale=w2_scale, output_dtype=torch.bfloat16
    )


def _times(layer: Callable[[], None], bare: Callable[[], None], repeat: int) -> tuple[float, float]:
    """Medians, the two measured in turn, so that a busy machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for action, found in zip((layer, bare), times, strict=True):
            dist.barrier()
            started = time.perf_counter()
            action()
            found.append((time.perf_counter() - started) * 1e6)
    return round(median(times[0]), 1), round(median(times[1]), 1)


def run_rank(rank: int, size: int, repeat: int) -> None:
    group = dist.new_group(list(range(RANKS)), backend="hccl")
    axis = ParallelAxis(RANKS, rank, group)
    topology = Topology(ParallelAxis(), axis, axis, mc2=Mc2Communicator(group), ranks_per_host=(1, 1))
    found: dict[str, Cost] = {}
    with torch.inference_mode():
        for kind, quantized in KINDS.items():
            for step, tokens in STEPS.items():
                for method in METHODS:
                    found[f"{method}-{kind}-{step}"] = measure(method, quantized, tokens, topology, repeat)
    if rank == RANKS - 1:  # the one that fills up in uneven steps
        report(found)


def report(found: dict[str, Cost]) -> None:
    print(f"{RANKS} ranks, hidden {HIDDEN}, {EXPERTS} experts, top-{TOP_K}; per layer, on the rank with fewer tokens")
    print(
        f"{'':>24} {'vendor':>7} {'kernels':>8} {'views':>6} {'allocs':>7} {'layer us':>9} {'bare us':>8} {'ratio':>6}"
    )
    for name, cost in found.items():
        print(
            f"{name:>24} {cost.vendor_calls:>7} {cost.kernels:>8} {cost.views:>6} {cost.allocations:>7} "
            f"{cost.layer_us:>9.0f} {cost.bare_us:>8.0f} {cost.ratio:>6.2f}"
        )
    figures: dict[str, Any] = {name: {**asdict(cost), "ratio": round(cost.ratio, 3)} for name, cost in found.items()}
    even = {(method, kind): found[f"{method}-{kind}-even"] for kind in KINDS for method in METHODS}
    counted = {name: cost.vendor_calls + cost.kernels for name, cost in even.items()}
    for (method, kind), launches in counted.items():
        print(f"launches in even steps: {method}, {kind}: {launches}")
    print(f"the choice of methods reckons with {LAUNCHES}")
    figures["launches"] = {f"{method}-{kind}": launches for (method, kind), launches in counted.items()}
    figures["launches_as_reckoned"] = all(counted[method, "bf16"] == LAUNCHES[method] for method in METHODS)
    worst = max(cost.ratio for cost in found.values())
    print(json.dumps({"name": "moe_host_cost", "figures": figures, "ratio": round(worst, 3), "goal": GOAL}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=200)
    options = parser.parse_args()
    values_of(run_ranks(run_rank, RANKS, options.repeat, group="hccl", together=True, timeout=300))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
