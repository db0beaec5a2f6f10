# SPDX-License-Identifier: Apache-2.0
"""What vLLM decides when its own all-reduce brings the votes of all ranks together: the fuzz's oracle (from 0.12 on).

Import under the virtual NPU.
"""

from __future__ import annotations

import torch
from vllm.config import CUDAGraphMode
from vllm.v1.worker import dp_utils

from .schedules import NEAR_THE_END, RankStep
from .upstream_runner import dispatcher, make_config

SITUATIONS = (
    "all idle",
    "fewer requests than ranks",
    "graph",
    "whole step",
    "whole step refused",
    "eager",
    "speculative",
    "profiling",
)
"""What the schedules of such a release must come to, often. An idle rank votes for the graph of a whole step: another rank
refuses it, with a prompt or with more tokens than are captured."""


class Oracle:
    """What vLLM decides when its own all-reduce brings the votes together."""

    def __init__(self, speculative: bool) -> None:
        self.query_len = 4 if speculative else 1
        config = make_config(0, 2, self.query_len)
        self.main = dispatcher(config, CUDAGraphMode.FULL_AND_PIECEWISE, self.query_len)
        self.draft = dispatcher(config, CUDAGraphMode.PIECEWISE, 1)
        self.speculative = speculative

    def decide(self, row: tuple[RankStep, ...]) -> list[tuple[int, list[int]]]:
        """(agreed mode, tokens of all ranks) for each forward of one step."""
        main = self._agree([self._main_vote(step) for step in row])
        if not self.speculative:
            return [main]
        graphs = main[0] != 0
        return [main, *(self._agree([self._draft_vote(s, index, graphs) for s in row]) for index in (0, 1))]

    def _main_vote(self, step: RankStep) -> tuple[int, int, int]:
        if step.profile:
            return step.profile, step.profile, 0
        counts = [self.query_len] if step.dummy else [r.scheduled for r in step.requests]
        uniform = step.dummy or (max(counts) == self.query_len and sum(counts) == self.query_len * len(counts))
        mode, descriptor = self.main.dispatch(num_tokens=sum(counts), uniform_decode=uniform)
        return sum(counts), descriptor.num_tokens, mode.value

    def _draft_vote(self, step: RankStep, index: int, graphs: bool) -> tuple[int, int, int]:
        if step.dummy or step.profile:
            tokens, allowed = step.profile or self.query_len, graphs
        else:
            fits = all(r.computed + r.scheduled + 3 <= NEAR_THE_END + 1 for r in step.requests)
            own = sum(r.scheduled for r in step.requests) if index == 0 else len(step.requests)
            tokens, allowed = (own if fits else 1), True
        mode, descriptor = self.draft.dispatch(tokens, valid_modes=None if allowed else {CUDAGraphMode.NONE})
        return tokens, descriptor.num_tokens, mode.value

    @staticmethod
    def _agree(votes: list[tuple[int, int, int]]) -> tuple[int, list[int]]:
        tokens, padded, modes = zip(*votes, strict=True)
        tensor = torch.tensor([tokens, padded, [0] * len(votes), modes], dtype=torch.int32)
        mode = dp_utils._post_process_cudagraph_mode(tensor)
        return mode, dp_utils._post_process_dp_padding(tensor, mode != 0).tolist()
