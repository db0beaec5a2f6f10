# SPDX-License-Identifier: Apache-2.0
"""What each rank does in test_graph_ranks.py: collectives, dispatch and combine inside captured graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch_npu

from tests.support.processes import report
from tests.support.ranks import run_ranks, values_of

from .hccl_checks import NPU, start


def collectives(rank: int, size: int) -> dict[str, list[float]]:
    """Results of two replays with different inputs; every collective that serving puts into a graph."""
    start(rank, size, seconds=30)
    x = torch.zeros(2 * size, device=NPU)
    reduced, scattered = torch.zeros_like(x), torch.zeros(2, device=NPU)
    exchanged = torch.zeros_like(x)
    gathered = torch.zeros(2 * size * size, device=NPU)

    def step() -> torch.Tensor:
        reduced.copy_(x)
        dist.all_reduce(reduced)
        dist.all_gather_into_tensor(gathered, x)
        dist.reduce_scatter_tensor(scattered, x)
        dist.all_to_all_single(exchanged, x)
        return reduced + 1

    step()
    before = [tensor.clone() for tensor in (reduced, gathered, scattered, exchanged)]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = step()
    for tensor, old in zip((reduced, gathered, scattered, exchanged), before, strict=True):
        assert torch.equal(tensor, old), "a capture leaves no result behind"
    found: dict[str, list[float]] = {}
    for replay in (1, 2):
        x.copy_(torch.arange(2.0 * size, device=NPU) + 100 * rank + 1000 * replay)
        graph.replay()
        inputs = [torch.arange(2.0 * size) + 100 * r + 1000 * replay for r in range(size)]
        total = torch.stack(inputs).sum(0)
        assert torch.equal(reduced.cpu(), total), "all_reduce"
        assert torch.equal(result.cpu(), total + 1), "the operator after it"
        assert torch.equal(gathered.cpu(), torch.cat(inputs)), "all_gather"
        assert torch.equal(scattered.cpu(), total[2 * rank : 2 * rank + 2]), "reduce_scatter"
        assert torch.equal(exchanged.cpu(), torch.cat([i[2 * rank : 2 * rank + 2] for i in inputs])), "all_to_all"
        found[str(replay)] = reduced.tolist()
    refused = ""
    try:
        with torch.npu.graph(torch.npu.NPUGraph()):
            _hccl().barrier()
    except RuntimeError as error:
        refused = str(error)
    assert "hccl BARRIER cannot be captured into a graph" in refused, refused
    dist.all_reduce(x)
    return found


def _hccl() -> Any:
    """The backend of the default group."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD._get_backend(torch.device(NPU))


def dispatch_and_combine(rank: int, size: int) -> dict[str, Any]:
    """Dispatch, an expert that doubles, combine: replays with other rows, other experts and another mask."""
    start(rank, size, seconds=30)
    group = _hccl().get_hccl_comm_name(rank)
    hidden, batch, experts, k = 1024, 4, 2 * size, 2
    x = torch.ones(batch, hidden, dtype=torch.bfloat16, device=NPU)
    ids = torch.tensor([[0, 1]] * batch, dtype=torch.int32, device=NPU)
    weights = torch.full((batch, k), 0.5, device=NPU)
    mask = torch.ones(batch, dtype=torch.bool, device=NPU)
    common = {
        "group_ep": group,
        "ep_world_size": size,
        "ep_rank_id": rank,
        "moe_expert_num": experts,
        "global_bs": 0,
        "x_active_mask": mask,
    }

    def step() -> torch.Tensor:
        rows, _, assist, _, received, _, _ = torch_npu.npu_moe_distribute_dispatch_v2(x, ids, **common)
        return torch_npu.npu_moe_distribute_combine_v2(
            rows * 2,
            ids,
            assist,
            received,
            weights,
            tp_send_counts=torch.zeros(1, dtype=torch.int32, device=NPU),
            **common,
        )

    step()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = step()
    sums = []
    for replay, active in ((1, batch), (2, 1 + rank)):
        x.fill_(replay + rank)
        ids.copy_(torch.tensor([[(rank + i) % experts, (rank + i + 1) % experts] for i in range(batch)], device=NPU))
        mask.copy_(torch.arange(batch, device=NPU) < active)
        graph.replay()
        assert torch.equal(result[:active].float().cpu(), torch.full((active, hidden), 2.0 * (replay + rank)))
        sums.append(active)
    return {"active": sums}


if __name__ == "__main__":
    answers = values_of(run_ranks(dispatch_and_combine, 2, group=None, start="forkserver", together=True, timeout=100))
    report([answer["active"] for answer in answers])
