# SPDX-License-Identifier: Apache-2.0
"""What ranks do together: collectives, the step sync on each transport, MoE layers by each method at each size.

Every rank runs all of it and reports; the command puts the ranks' results together.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
import torch_npu

from vllm_ascend_patch.core.dp import Vote
from vllm_ascend_patch.core.dp.calibrate import measure
from vllm_ascend_patch.core.dp.startup import Groups, SessionConfig, start_session
from vllm_ascend_patch.core.moe.comm import make_method
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology

from .result import TOLERANCE, Result, attempt, require

PART = "ranks"
TIMEOUT_SECONDS = 60.0
TRANSPORTS = ("cpu", "device", "shared", "auto")
METHODS = ("allgather", "mc2", "alltoall")
HIDDEN, INTERMEDIATE, EXPERTS_PER_RANK, TOP_K = 1024, 64, 4, 4
TOLERANCE_INT8 = 0.03
"""8-bit activations, rounded twice."""


def check(rank: int, size: int, address: str) -> Iterator[Result]:
    """One result per check; after the first that fails on this rank nothing more, since ranks have to stay together."""
    torch_npu.npu.set_device(rank)
    device = torch.device("npu", rank)
    dist.init_process_group(
        "cpu:gloo,npu:hccl",
        init_method=address,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    checks = [(name, partial(run, device)) for name, run in COLLECTIVES.items()]
    checks += [(f"step sync, {name}", partial(step_sync, name, device)) for name in TRANSPORTS]
    for ranks in (n for n in range(2, size + 1) if size % n == 0):
        layers = Layers(ranks, device)
        checks += [
            (f"MoE by {method}, EP {ranks}, {kind}", partial(layers.run, method, kind))
            for method in METHODS
            for kind in ("bfloat16", "int8")
        ]
    with torch.inference_mode():
        for name, run in checks:
            result = attempt(PART, name, run)
            yield result
            if not result.ok:
                return
    dist.barrier()


# Collectives ---------------------------------------------------------------------------------------------------------


def _mine(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.full(shape, float(dist.get_rank() + 1), device=device)


def _equal(found: torch.Tensor, expected: torch.Tensor) -> str:
    require(torch.equal(found.cpu(), expected.to(found.dtype)), f"{found.flatten()[:8].tolist()} is not right")
    return f"{dist.get_world_size()} ranks, {found.numel() * found.element_size()} bytes"


def all_reduce(device: torch.device) -> str:
    size, x = dist.get_world_size(), _mine(device, 1000)
    dist.all_reduce(x)
    return _equal(x, torch.full((1000,), size * (size + 1) / 2))


def all_gather(device: torch.device) -> str:
    size = dist.get_world_size()
    gathered = torch.zeros(size, 100, device=device)
    dist.all_gather_into_tensor(gathered, _mine(device, 100))
    return _equal(gathered, torch.arange(1.0, size + 1).unsqueeze(1).expand(size, 100))


def reduce_scatter(device: torch.device) -> str:
    size, own = dist.get_world_size(), torch.zeros(100, device=device)
    dist.reduce_scatter_tensor(own, _mine(device, size * 100))
    return _equal(own, torch.full((100,), size * (size + 1) / 2))


def all_to_all(device: torch.device) -> str:
    """With splits that differ: rank r sends r + 1 rows to everyone."""
    rank, size = dist.get_rank(), dist.get_world_size()
    received = torch.zeros(size * (size + 1) // 2, 8, device=device)
    dist.all_to_all_single(
        received,
        _mine(device, size * (rank + 1), 8),
        output_split_sizes=[r + 1 for r in range(size)],
        input_split_sizes=[rank + 1] * size,
    )
    return _equal(received, torch.cat([torch.full((r + 1, 8), r + 1.0) for r in range(size)]))


def broadcast(device: torch.device) -> str:
    x = _mine(device, 100)
    dist.broadcast(x, src=0)
    return _equal(x, torch.ones(100))


def barrier(device: torch.device) -> str:
    dist.barrier()
    return "all ranks met"


COLLECTIVES = {
    "all_reduce": all_reduce,
    "all_gather_into_tensor": all_gather,
    "reduce_scatter_tensor": reduce_scatter,
    "all_to_all_single": all_to_all,
    "broadcast": broadcast,
    "barrier": barrier,
}


# The step sync -------------------------------------------------------------------------------------------------------


def step_sync(transport: str, device: torch.device) -> str:
    """A few steps whose agreement is known, then the host time that a step pays; of ``auto``, what it takes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    everyone = list(range(size))

    def groups() -> Groups:
        return Groups(dist.new_group(everyone, backend="gloo"), dist.new_group(everyone, backend="hccl"))

    config = SessionConfig(transport, TIMEOUT_SECONDS, 2, {}, f"selftest {transport}", log_interval=0)
    store = dist.distributed_c10d._get_default_store()
    session = start_session(config, store, rank, size, groups, device)
    try:
        for step in range(5):
            vote = Vote(10 * step + rank + 1, 10 * step + rank + 1)
            session.announce(vote, with_prefill=False)
            tokens = session.resolve(vote).tokens
            expected = tuple(10 * step + r + 1 for r in everyone)
            require(tokens == expected, f"ranks agreed on {tokens} tokens instead of {expected}")
        chosen = session.channel.transport
        if transport == "auto":
            return f"takes {chosen.name}"
        return f"{measure(chosen, lambda waited: None):.0f} us of host time per step"
    finally:
        session.close()


# MoE layers ----------------------------------------------------------------------------------------------------------


class Layers:
    """One random layer over groups of ``ranks`` neighbouring ranks, data parallel: whole experts on each."""

    def __init__(self, ranks: int, device: torch.device) -> None:
        self.ranks, self.device = ranks, device
        self._topology: Topology | None = None

    def run(self, method: str, kind: str) -> str:
        """The layer by ``method`` against a float64 loop over tokens and their experts. Collective."""
        topology = self._topology = self._topology or self._make()
        rank, experts = topology.ep.rank, self.ranks * EXPERTS_PER_RANK
        generator = torch.Generator().manual_seed(7)
        w13 = torch.randn(experts, 2 * INTERMEDIATE, HIDDEN, generator=generator) * HIDDEN**-0.5
        w2 = torch.randn(experts, HIDDEN, INTERMEDIATE, generator=generator) * INTERMEDIATE**-0.5
        tokens = tuple(5 + 3 * (r % 3) for r in range(self.ranks))
        rows = [torch.randn(n, HIDDEN, generator=generator).to(torch.bfloat16) for n in tokens][rank]
        scores = [torch.rand(n, experts, generator=generator) for n in tokens][rank]
        weights, ids = scores.topk(TOP_K, dim=1)
        loaded, exact = _weights(w13, w2, kind, rank, self.device)
        made = make_method(method, topology, ExpertPlacement.linear(experts, self.ranks, rank))
        found = fused_moe(
            made,
            rows.to(self.device),
            weights.to(self.device),
            ids.to(torch.int32).to(self.device),
            loaded,
            MoEStep(tokens, tokens[rank], method),
        )
        expected = _loop(rows, weights, ids, *exact)
        error = float((found.cpu().double() - expected).abs().max() / expected.abs().max())
        limit = TOLERANCE_INT8 if kind == "int8" else TOLERANCE[kind]
        require(error <= limit, f"error {error:.2g} of the largest entry, at most {limit:g} is allowed")
        return f"error {error:.1g} of the largest entry (allowed {limit:g})"

    def _make(self) -> Topology:
        rank, size = dist.get_rank(), dist.get_world_size()
        partition = [list(range(first, first + self.ranks)) for first in range(0, size, self.ranks)]
        groups = [dist.new_group(members, backend="hccl") for members in partition]
        own = ParallelAxis(self.ranks, rank % self.ranks, groups[rank // self.ranks])
        return Topology(ParallelAxis(), own, own, False, Mc2Communicator(groups[rank // self.ranks]))


def _weights(
    w13: torch.Tensor, w2: torch.Tensor, kind: str, rank: int, device: torch.device
) -> tuple[ExpertWeights, tuple[torch.Tensor, torch.Tensor]]:
    """This rank's experts as they are loaded, and all of them in float64 as they then are."""
    own = slice(rank * EXPERTS_PER_RANK, (rank + 1) * EXPERTS_PER_RANK)
    if kind == "bfloat16":
        w13, w2 = w13.to(torch.bfloat16), w2.to(torch.bfloat16)
        loaded = ExpertWeights.from_loaded(w13[own].to(device), w2[own].to(device), activation="silu")
        return loaded, (w13.double(), w2.double())
    scale13, scale2 = w13.abs().amax(-1) / 127, w2.abs().amax(-1) / 127
    int13, int2 = ((w / s.unsqueeze(-1)).round().to(torch.int8) for w, s in ((w13, scale13), (w2, scale2)))
    loaded = ExpertWeights.from_loaded(
        int13[own].to(device),
        int2[own].to(device),
        activation="silu",
        w13_scale=scale13[own].to(device),
        w2_scale=scale2[own].to(device),
        output_dtype=torch.bfloat16,
    )
    return loaded, (int13.double() * scale13.double().unsqueeze(-1), int2.double() * scale2.double().unsqueeze(-1))


def _loop(
    rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    output = torch.zeros(rows.shape, dtype=torch.float64)
    for token, x in enumerate(rows.double()):
        for weight, expert in zip(weights[token].double(), ids[token].tolist(), strict=True):
            gate, up = (w13[expert] @ x).chunk(2)
            output[token] += weight * (w2[expert] @ (torch.nn.functional.silu(gate) * up))
    return output
