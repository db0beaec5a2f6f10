# SPDX-License-Identifier: Apache-2.0
"""The MoE method is chosen from the agreed counts: ranks with very different batches of their own choose alike."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from vllm_ascend_patch.core.dp import DPSession
from vllm_ascend_patch.core.dp.agreement import agree
from vllm_ascend_patch.core.dp.vector import StepVector
from vllm_ascend_patch.core.moe.capacity import SchedulerFacts
from vllm_ascend_patch.core.moe.limits import MoEFacts
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.soc import Soc
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.moe import tokens as step_tokens
from vllm_ascend_patch.seams.moe.topology import in_runs

from .worlds import matrix

RANKS = 8


class _Session(DPSession):
    """A session that has agreed, and exchanges nothing."""

    def __init__(self, vectors: list[StepVector]) -> None:
        self.current = agree(matrix(vectors))
        self.channel: Any = SimpleNamespace(counters=None)

    def close(self) -> None:
        """Nothing is open."""


def _choices(vectors: list[StepVector]) -> list[tuple[str, int]]:
    """(method, active tokens) on each rank, through the fields that vLLM's forward context gets."""
    facts = MoEFacts(
        soc=Soc.A3,
        operator_version=2,
        tp_size=2,
        dp_size=RANKS,
        ep_size=16,
        num_experts=128,
        hidden_size=2048,
        top_k=8,
        hccl_buffsize_mib=4096,
        sequence_parallel=True,
    )
    scheduler = SchedulerFacts(max_num_batched_tokens=8192, max_num_seqs=256)
    chosen = []
    state = serving.current()
    try:
        state.session = _Session(vectors)
        agreement = state.session.current
        assert agreement is not None
        for rank in range(RANKS):
            fields = step_tokens.forward_context_fields(
                num_tokens=agreement.padded_tokens[rank],
                num_tokens_across_dp=torch.tensor(agreement.padded_tokens, dtype=torch.int32),
                vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_rank=rank)),
            )
            tokens = fields[step_tokens.FIELD]
            step = tokens.step(MethodSelector(facts, scheduler))
            chosen.append((step.method, step.active_tokens))
    finally:
        state.session = None
    return chosen


def test_one_long_prompt_among_decodes_decides_for_every_rank() -> None:
    vectors = [StepVector(1, 1) for _ in range(RANKS - 1)] + [StepVector(4000, 4000, with_prefill=True)]
    assert {method for method, _ in _choices(vectors)} == {"alltoall"}
    assert {method for method, _ in _choices([StepVector(1, 1)] * RANKS)} == {"mc2"}


def test_all_ranks_choose_alike_and_idle_ranks_have_no_active_token() -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(300):
        vectors = [
            StepVector(1, 1, idle=True) if rng.random() < 0.4 else StepVector(n := rng.choice([1, 60, 900]), n)
            for _ in range(RANKS)
        ]
        choices = _choices(vectors)
        assert len({method for method, _ in choices}) == 1, vectors
        assert [active for _, active in choices] == [0 if v.idle else v.tokens for v in vectors]
        seen.add(choices[0][0])
    assert seen == {"mc2", "alltoall"}, f"the cases do not reach both methods: {seen}"


def test_the_ranks_of_hosts_are_told_only_where_they_follow_each_other() -> None:
    assert in_runs(["a", "a", "b", "b"]) == (2, 2)
    assert in_runs(["b", "b", "b", "a"]) == (3, 1)
    assert in_runs(["a", "b", "c"]) == (1, 1, 1)
    assert in_runs(["a", "b", "a", "b"]) == (), "two levels would send to ranks that are elsewhere"
    assert in_runs(["a", "a"]) == (), "one host has one level"
