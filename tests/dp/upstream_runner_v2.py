# SPDX-License-Identifier: Apache-2.0
"""Script: model runner V2's own agreement as the oracle of the seam's, over N random worlds.

Upstream's function runs twice for each rank: with the rows that its own exchange would have made of all ranks', and with
those that the seam hands back. Real graph manager, real look-up of graphs.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  (before vLLM)

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu import dp_utils
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from vllm_ascend_patch.core.dp import DPSession, StepAgreement, Vote, agree
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.step import runner_v2

from .worlds import matrix

SIZES = [1, 2, 4, 8, 16, 32]
ORIGINAL = vllm_ascend_patch.get_original("vllm.v1.worker.gpu.dp_utils:dispatch_cg_and_sync_dp")


def graph_manager(mode: CUDAGraphMode) -> Any:
    """Graphs of ``SIZES``, which count as captured: of pieces, of whole decode steps, or of both."""
    manager = CudaGraphManager.__new__(CudaGraphManager)
    manager.compilation_config = SimpleNamespace(cudagraph_capture_sizes=SIZES, max_cudagraph_capture_size=SIZES[-1])
    manager.vllm_config = SimpleNamespace(
        speculative_config=None, cache_config=SimpleNamespace(use_kda_recoverssm=False)
    )
    manager.cudagraph_mode, manager.max_num_reqs, manager.decode_query_len = mode, 32, 1
    manager.lora_capture_cases, manager._lora_dispatch_map, manager._max_lora_case = [0], {}, 0
    manager.varlen_decode, manager.ubatch_runner = False, None
    manager._candidates, manager._capture_descs = {}, {}
    manager._init_candidates()
    manager._graphs_captured = True
    return manager


def random_batch(rng: random.Random) -> dict[str, Any]:
    """One rank's arguments: a decoding or an idle step, one with prompts, or one that has to be eager."""
    requests = rng.choice([1, 1, rng.randint(1, 31)])
    if rng.random() < 0.7:
        return {"num_reqs": requests, "num_tokens": requests, "uniform_token_count": 1, "max_query_len": 1}
    tokens = requests + rng.randint(1, 60)
    eager = rng.random() < 0.3
    return {"num_reqs": requests, "num_tokens": tokens, "uniform_token_count": None, "need_eager": eager}


class _Rows:
    """An exchange that hands over a rank's rows, or answers with those of all."""

    cpu_group = None

    def __init__(self, answer: torch.Tensor | None = None) -> None:
        self.answer = answer
        self.seen = torch.empty(0)

    def cpu_all_reduce_(self, tensor: torch.Tensor) -> None:
        self.seen = tensor.clone()
        if self.answer is not None:
            tensor.copy_(self.answer)

    def all_reduce(self, tensor: torch.Tensor, group: Any = None) -> None:
        self.cpu_all_reduce_(tensor)


@contextmanager
def exchange(rows: _Rows) -> Iterator[None]:
    names = {"dist": rows, "get_dp_group": lambda: rows}
    before = {name: getattr(dp_utils, name) for name in names if hasattr(dp_utils, name)}
    for name in before:
        setattr(dp_utils, name, names[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(dp_utils, name, value)


class _Session(DPSession):
    """A session whose other ranks have sent their vectors already."""

    def __init__(self, vote: Vote, agreement: StepAgreement, announced: bool) -> None:
        self._vote, self._agreement, self._said = vote, agreement, announced
        self.channel: Any = SimpleNamespace(progress=SimpleNamespace(enter=lambda phase, blocking: None))

    @property
    def announced(self) -> bool:
        return self._said

    def resolve(self, vote: Vote) -> StepAgreement:
        assert vote == self._vote
        return self._agreement

    def close(self) -> None:
        """Nothing is open."""


def outcome(decided: Any) -> tuple[Any, ...]:
    descriptor, state = decided
    agreed = (state.num_tokens_across_dp.tolist(), state.uniform_token_count, state.eager, state.num_reqs)
    return (descriptor, *agreed, getattr(state, "skip_drafts", False))


def main(count: int) -> None:
    modes = (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.FULL_AND_PIECEWISE)
    managers, seen = [graph_manager(mode) for mode in modes], Counter[str]()
    for seed in range(count):
        rng, manager = random.Random(seed), managers[seed % len(managers)]
        batches = [random_batch(rng) for _ in range(rng.randint(2, 4))]
        size = len(batches)
        arguments = [
            {"cudagraph_manager": manager, "dp_size": size, "dp_rank": rank, **batch}
            for rank, batch in enumerate(batches)
        ]
        own: list[torch.Tensor] = []
        for given in arguments:
            with exchange(rows := _Rows()):
                ORIGINAL(**given)
            own.append(rows.seen)
        total = torch.stack(own).sum(dim=0).to(torch.int32)
        votes: list[Vote] = []
        for given in arguments:
            descriptor, _ = ORIGINAL(**(given | {"dp_size": 1}))
            batch = (given["num_reqs"], given["num_tokens"], given["uniform_token_count"], given.get("max_query_len"))
            votes.append(runner_v2._vote(descriptor, *batch))
        agreement = agree(matrix([vote.vector() for vote in votes]), padding_when_eager=False)
        for rank, given in enumerate(arguments):
            with exchange(_Rows(total)):
                expected = outcome(ORIGINAL(**given))
            serving.current().session = _Session(votes[rank], agreement, announced=rng.random() < 0.7)
            found = outcome(dp_utils.dispatch_cg_and_sync_dp(**given))
            assert found == expected, (seed, rank, found, expected)
            assert expected[1] == list(agreement.padded_tokens), (seed, expected, agreement)
        seen[CUDAGraphMode(agreement.graph_mode).name] += 1
        seen["a graph given up"] += any(vote.graph_mode > agreement.graph_mode for vote in votes)
    serving.current().session = None
    assert min(seen.values()) > count / 20, seen
    print(f"{count} worlds of model runner V2: {dict(seen)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
