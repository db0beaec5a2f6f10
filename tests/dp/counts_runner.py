# SPDX-License-Identifier: Apache-2.0
"""The runner and the oracle of the fuzz in releases whose only sync is ``DPMetadata.num_tokens_across_dp`` (to 0.11.0).

Real `GPUModelRunner.get_dp_padding`, real `set_forward_context`, patched as in an engine; only input preparation and
forwards are left out. Import under the virtual NPU.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.config import CompilationConfig, ParallelConfig
from vllm.forward_context import DPMetadata, get_forward_context, set_forward_context
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ascend_patch.seams import dp_phases, dp_sync
from vllm_ascend_patch.seams.dp_token_counts import prepare_inputs
from vllm_ascend_patch.seams.step_metadata import tokens_across_dp

from .schedules import RankStep

vllm_ascend_patch.apply()
assert hasattr(DPMetadata.num_tokens_across_dp, "__wrapped__"), "the all-reduce is not patched"

SITUATIONS = ("all idle", "fewer requests than ranks", "eager", "profiling")
"""What the schedules of such a release must come to, often. The port runs them eager, and refuses drafters."""


class DecidingRunner(GPUModelRunner):
    """A `GPUModelRunner` that can agree on token counts, and nothing else."""

    def __init__(self, rank: int, size: int, speculative: bool) -> None:
        assert not speculative
        self.vllm_config = SimpleNamespace(
            parallel_config=ParallelConfig(data_parallel_size=size, data_parallel_rank=rank),
            compilation_config=CompilationConfig(),
            model_config=SimpleNamespace(enforce_eager=True),  # as npu/config_defaults.py leaves it
        )
        self.rank = rank
        self.input_batch = SimpleNamespace(num_reqs=0)

    def run(self, step: RankStep) -> list[Any]:
        """One entry for the step's forward: [no graph, tokens of this rank, tokens of all ranks, no split]."""
        time.sleep(step.delay)
        if step.dummy:
            return dp_sync.execute_dummy_batch(lambda worker: self._dummy_step(1), None)
        if step.profile:
            return self._dummy_step(step.profile)
        return dp_phases.execute_model(self._real_step, step)

    def _real_step(self, step: RankStep) -> list[Any]:
        names = [f"request-{i}" for i in range(len(step.requests))]
        self.input_batch.num_reqs, self.input_batch.req_ids = len(names), names
        self.input_batch.num_computed_tokens_cpu = np.array([r.computed for r in step.requests], dtype=np.int32)
        self.input_batch.num_prompt_tokens = np.array([r.prompt for r in step.requests], dtype=np.int32)
        output = SimpleNamespace(
            total_num_scheduled_tokens=sum(r.scheduled for r in step.requests),
            num_scheduled_tokens={name: r.scheduled for name, r in zip(names, step.requests, strict=True)},
            scheduled_spec_decode_tokens={},
        )
        prepare_inputs(lambda runner, scheduler_output: time.sleep(step.preparation), self, output)
        return [self._forward(output.total_num_scheduled_tokens)]

    def _dummy_step(self, num_tokens: int) -> list[Any]:
        def upstream(runner: DecidingRunner, num_tokens: int) -> list[Any]:
            return [runner._forward(num_tokens)]

        return dp_sync.dummy_run(upstream, self, num_tokens)

    def _forward(self, num_tokens: int) -> list[Any]:
        padding, across = self.get_dp_padding(num_tokens)
        num_tokens += padding
        with set_forward_context(None, self.vllm_config, num_tokens=num_tokens, num_tokens_across_dp=across):
            counts = tokens_across_dp(get_forward_context().dp_metadata)
        assert counts is not None
        return [0, num_tokens, counts.tolist(), False]


class Oracle:
    """Without padding and graphs, the step's outcome is every rank's own token count."""

    def __init__(self, speculative: bool) -> None:
        assert not speculative

    def decide(self, row: tuple[RankStep, ...]) -> list[tuple[int, list[int]]]:
        """(no graph, tokens of all ranks) for the step's one forward."""
        counts = [step.profile or (1 if step.dummy else sum(r.scheduled for r in step.requests)) for step in row]
        return [(0, counts)]
