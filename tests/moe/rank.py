# SPDX-License-Identifier: Apache-2.0
"""One rank of a test world: runs cases on its device and reports how far it is from the reference.

Started by ``world.py`` under the virtual NPU's launcher, as ``python -m tests.moe.rank WORLD SOCKET``: it imports
torch once, forks one process per rank, and each connects back.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Client
from typing import Any

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401  (registers the npu device and the hccl backend)

from tests.support.int4_models import packed
from tests.support.ranks import run_ranks
from vllm_ascend_patch.core.moe.activations import Activation
from vllm_ascend_patch.core.moe.comm import make_method
from vllm_ascend_patch.core.moe.comm.all_to_all import AllToAllMethod
from vllm_ascend_patch.core.moe.comm.base import MoECommMethod
from vllm_ascend_patch.core.moe.comm.hierarchical import HierarchicalMethod
from vllm_ascend_patch.core.moe.comm.mc2 import Mc2Method, Mc2Operators
from vllm_ascend_patch.core.moe.driver import fused_moe
from vllm_ascend_patch.core.moe.experts import ExpertWeights
from vllm_ascend_patch.core.moe.int4_weights import empty_int4, int4_weights
from vllm_ascend_patch.core.moe.soc import detect_soc
from vllm_ascend_patch.core.moe.step import MoEStep
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Mc2Communicator, ParallelAxis, Topology
from vllm_ascend_patch.core.packed_int4 import group_scales, to_signed

from .cases import Case, Grid
from .reference import Layer, make_layer, mlp, poison_inactive, random_weights, reference_output

DEVICE = torch.device("npu")


class Rank:
    """This process's groups, made once per grid and kept."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.topologies: dict[Grid, Topology] = {}
        self.groups: dict[tuple[tuple[int, ...], ...], dist.ProcessGroup] = {}
        self.mc2: Mc2Communicator | None = None

    def axis(self, partition: list[list[int]]) -> ParallelAxis:
        """The axis of the partition's member that holds this rank."""
        mine = next(ranks for ranks in partition if self.rank in ranks)
        if len(mine) == 1:
            return ParallelAxis()
        key = tuple(map(tuple, partition))
        if key not in self.groups:
            groups = {tuple(ranks): dist.new_group(ranks, backend="hccl") for ranks in partition}
            self.groups[key] = groups[tuple(mine)]
        return ParallelAxis(len(mine), mine.index(self.rank), self.groups[key])

    def topology(self, grid: Grid) -> Topology:
        if grid not in self.topologies:
            everyone = list(range(self.world))
            tp = self.axis([everyone[d * grid.tp : (d + 1) * grid.tp] for d in range(grid.dp)])
            dp = self.axis([everyone[t :: grid.tp] for t in range(grid.tp)])
            ep = self.axis([everyone]) if grid.expert_parallel else ParallelAxis()
            if grid.expert_parallel and self.mc2 is None:
                assert ep.group is not None
                self.mc2 = Mc2Communicator(ep.group)
            mc2 = self.mc2 if grid.expert_parallel else None
            self.topologies[grid] = Topology(tp, dp, ep, grid.sequence_parallel, mc2, grid.hosts)
        return self.topologies[grid]

    @torch.inference_mode()
    def run(self, case: Case) -> float:
        """Largest error of this rank's output, relative to the largest entry of the reference."""
        topology = self.topology(case.grid)
        placement = ExpertPlacement.linear(case.physical_experts, topology.ep.size, topology.ep.rank)
        layer = make_layer(case)
        dp_rank = topology.dp.rank
        expected = _own_rows(case, topology, reference_output(case, layer, dp_rank))
        poison_inactive(case, layer, dp_rank)
        step = step_of(case, dp_rank)
        if self.rank == 0:
            if case.sabotage == "one-weight-missing":
                layer.topk_weights[0][0, 0] = 0.0
            if case.sabotage == "poison-counts-as-a-token":
                layer.topk_ids[0][step.active_tokens] = layer.topk_ids[0][0]  # valid, or the operators would refuse it
                step = replace(step, active_tokens=step.active_tokens + 1)
        hidden = _own_rows(case, topology, layer.hidden[dp_rank]).to(DEVICE)
        run = replayed if case.captured else fused_moe
        output = run(
            make(case, topology, placement),
            hidden,
            _own_rows(case, topology, layer.topk_weights[dp_rank]).to(DEVICE),
            _own_rows(case, topology, layer.topk_ids[dp_rank]).to(DEVICE),
            _own_weights(case, topology, placement, layer, self.rank),
            step,
            **({"apply_router_weight_on_input": True} if case.weight_on_input else {}),
        )
        active = step_of(case, dp_rank).active_rows(topology)
        if case.shared:
            for _ in range(2 if case.sabotage == "shared-twice" else 1):
                output[:active] += _shared(topology, layer, hidden)[:active]
        if case.sabotage == "padding-comes-back":
            output[active:] = 1.0
        return _distance(output, expected, case)


def replayed(
    method: MoECommMethod[Any, Any],
    hidden: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    weights: ExpertWeights,
    step: MoEStep,
) -> torch.Tensor:
    """The layer from a graph that was captured with other tokens, experts and mask."""
    assert step.active_mask is not None
    given = (hidden, topk_weights, topk_ids, step.active_mask)
    buffers = [torch.zeros_like(tensor) for tensor in given]
    buffers[2] += torch.arange(topk_ids.shape[1], device=DEVICE)  # distinct experts, the same for every token
    buffers[3][:1] = True
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x, topk, ids, mask = buffers
        output = fused_moe(method, x, topk, ids, weights, replace(step, active_mask=mask))
    for buffer, tensor in zip(buffers, given, strict=True):
        buffer.copy_(tensor)
    graph.replay()
    return output


def _shared(topology: Topology, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
    """The shared expert as upstream runs it: after the routed ones, on the same tensor, its sum complete over TP."""
    w13, w2 = layer.shared13.to(DEVICE), layer.shared2.to(DEVICE)
    if not topology.splits_tokens_over_tp:
        return mlp(hidden, w13, w2)
    size = w2.shape[1] // topology.tp.size
    own = slice(topology.tp.rank * size, (topology.tp.rank + 1) * size)
    gate, up = w13.chunk(2)
    partial = mlp(hidden, torch.cat([gate[own], up[own]]), w2[:, own])
    dist.all_reduce(partial, group=topology.tp.group)
    return partial


def make(case: Case, topology: Topology, placement: ExpertPlacement) -> MoECommMethod[Any, Any]:
    if case.method == "mc2":
        return Mc2Method(topology, placement, Mc2Operators(detect_soc(), case.operator_version))
    if case.method in ("alltoall", "hierarchical"):
        kind = HierarchicalMethod if case.method == "hierarchical" else AllToAllMethod
        return kind(topology, placement, case.operator_version)
    return make_method(case.method, topology, placement)


def step_of(case: Case, dp_rank: int) -> MoEStep:
    tokens, active = case.tokens_per_dp_rank, case.active_per_dp_rank[dp_rank]
    if not case.captured:
        return MoEStep(tokens, active, case.method)
    # In a captured graph the host's count is frozen at all rows; only the mask knows.
    mask = (torch.arange(tokens[dp_rank]) < active).to(DEVICE)
    return MoEStep(tokens, tokens[dp_rank], case.method, captured=True, active_mask=mask)


def _own_rows(case: Case, topology: Topology, rows: torch.Tensor) -> torch.Tensor:
    if not topology.sequence_parallel:
        return rows
    chunk = -(-rows.shape[0] // topology.tp.size)
    padded = torch.cat([rows, rows.new_zeros((chunk * topology.tp.size - rows.shape[0], *rows.shape[1:]))])
    return padded[topology.tp.rank * chunk : (topology.tp.rank + 1) * chunk]


def _own_weights(case: Case, topology: Topology, placement: ExpertPlacement, layer: Layer, rank: int) -> ExpertWeights:
    """Whole local experts, or this rank's slice of the intermediate size of all experts."""
    w13, w2, w13_scale, w2_scale = layer.w13, layer.w2, layer.w13_scale, layer.w2_scale
    w13_bias, w2_bias = layer.w13_bias, layer.w2_bias
    activation = Activation.of(case.activation, alpha=case.alpha, limit=case.limit)
    if topology.expert_parallel:
        local = slice(placement.first_local, placement.first_local + placement.num_local)
        w13, w2 = w13[local], w2[local]
        w13_scale = None if w13_scale is None else w13_scale[local]
        w2_scale = None if w2_scale is None else w2_scale[local]
        w13_bias = None if w13_bias is None else w13_bias[local]
        w2_bias = None if w2_bias is None else w2_bias[local]
    else:
        share = case.intermediate // case.grid.world
        own = torch.arange(rank * share, (rank + 1) * share)
        gate_up = torch.cat([own, own + case.intermediate]) if activation.gated else own
        if activation.interleaved:
            gate_up = torch.stack([2 * own, 2 * own + 1], dim=1).flatten()
        w13_bias = None if w13_bias is None else w13_bias[:, gate_up]
        w2_bias = w2_bias if rank == 0 else None  # once in the sum over ranks
        w13, w2 = w13[:, gate_up], w2[:, :, own]
        w13_scale = None if w13_scale is None else w13_scale[:, gate_up]
        if case.group_size and w2_scale is not None:
            groups = share // case.group_size
            w2_scale = w2_scale[:, :, rank * groups : (rank + 1) * groups]
    if case.int4 and not case.quantized:
        assert w13_scale is not None
        assert w2_scale is not None
        return _packed_weights(w13, w2, w13_scale, w2_scale, activation)
    if case.int4:
        assert w13_scale is not None
        assert w2_scale is not None
        return _int4_weights(w13, w2, w13_scale, w2_scale, getattr(torch, case.dtype))
    weights = ExpertWeights.from_loaded(
        w13.to(DEVICE),
        w2.to(DEVICE),
        activation=activation,
        w13_scale=None if w13_scale is None else w13_scale.to(DEVICE),
        w2_scale=None if w2_scale is None else w2_scale.to(DEVICE),
        output_dtype=getattr(torch, case.dtype),
        w13_bias=None if w13_bias is None else w13_bias.to(DEVICE),
        w2_bias=None if w2_bias is None else w2_bias.to(DEVICE),
    )
    return weights.in_fractal_nz() if case.fused else weights


def _int4_weights(
    w13: torch.Tensor, w2: torch.Tensor, w13_scale: torch.Tensor, w2_scale: torch.Tensor, dtype: torch.dtype
) -> ExpertWeights:
    """From integers ``[E, N, K]`` and scales ``[E, N]``, as a checkpoint's loader leaves them."""
    packed, bits, biases = [], [], []
    for integers, scale in ((w13, w13_scale), (w2, w2_scale)):
        experts, outputs, inputs = integers.shape
        low, high = integers[:, 0::2].int() & 15, integers[:, 1::2].int() << 4
        packed.append(empty_int4(experts, outputs, inputs).copy_(low | high))
        bits.append(scale.contiguous().view(torch.int32).long().unsqueeze(-1))
        biases.append((8 * (integers.double() * scale.double().unsqueeze(-1)).sum(-1, keepdim=True)).float())
    return int4_weights(*(tensor.to(DEVICE) for tensor in (*packed, *bits, *biases)), output_dtype=dtype)


def _packed_weights(
    w13: torch.Tensor, w2: torch.Tensor, w13_scale: torch.Tensor, w2_scale: torch.Tensor, activation: Activation
) -> ExpertWeights:
    """From integers ``[E, N, K]`` and scales ``[E, N, G]``, as a checkpoint's loader leaves them."""
    words = [to_signed(packed(integers.flatten(0, 1)).unflatten(0, integers.shape[:2])) for integers in (w13, w2)]
    scales = [group_scales(scale).copy_(scale) for scale in (w13_scale, w2_scale)]
    on_device = (tensor.to(DEVICE) for tensor in (*words, *scales))
    return ExpertWeights.of_int4(*on_device, activation=activation)


def _distance(output: torch.Tensor, expected: torch.Tensor, case: Case) -> float:
    """The largest error; infinite when something is not finite or a row without a token is not zero."""
    assert output.dtype == getattr(torch, case.dtype), f"output dtype {output.dtype}"
    assert output.shape == expected.shape, f"output {tuple(output.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    error = (output.cpu().double() - expected).abs()
    silent = expected.abs().amax(1) == 0
    if not bool(torch.isfinite(error).all()) or not bool((error[silent] == 0).all()):
        return float("inf")
    return float(error.max() / expected.abs().max().clamp_min(1e-6))


def serve(rank: int, world: int, address: str) -> None:
    """Answer cases until the parent closes the connection."""
    with Client(address) as connection:
        try:
            state = Rank(rank, world)
            connection.send((rank, "ready"))
        except BaseException:
            connection.send((rank, traceback.format_exc()))
            raise
        while True:
            try:
                case = connection.recv()
            except EOFError:
                break
            try:
                connection.send((rank, state.run(case)))
            except Exception:
                connection.send((rank, traceback.format_exc()))


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not live through a fork
    for experts in (16, 12, 17, 1):
        random_weights(experts, Case.hidden, Case.intermediate)  # once, for all ranks that are forked
    run_ranks(serve, int(sys.argv[1]), sys.argv[2], group="hccl", timeout=3600)  # the parent's limits come first
