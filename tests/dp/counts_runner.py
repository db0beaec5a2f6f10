# SPDX-License-Identifier: Apache-2.0
"""The runner and the oracle of the fuzz in releases whose only sync is ``DPMetadata.num_tokens_across_dp`` (to 0.11.0).

Real ``GPUModelRunner.get_dp_padding``, real graph dispatcher, real ``set_forward_context``, patched as in an
engine; only input
preparation and forwards are left out, and the lines between these functions in ``execute_model`` and ``_dummy_run`` are
repeated. Import under the virtual NPU.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip

import time
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
from vllm.config import CompilationConfig, CompilationLevel, CUDAGraphMode, ParallelConfig, VllmConfig
from vllm.forward_context import BatchDescriptor, DPMetadata, get_forward_context, set_forward_context
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ascend_patch.seams.config import tokens_across_dp
from vllm_ascend_patch.seams.step import dummy, phases
from vllm_ascend_patch.seams.step.counts_before_0_12 import dummy_run, prepare_inputs

from .schedules import RankStep

vllm_ascend_patch.apply()
assert hasattr(DPMetadata.num_tokens_across_dp, "__wrapped__"), "the all-reduce is not patched"

SITUATIONS = ("all idle", "fewer requests than ranks", "graph", "eager", "profiling")
"""What the schedules of such a release must come to, often. The port refuses drafters there."""

CAPTURE_SIZES = [1, 2, 4, 8, 16, 24, 32]


def make_config(rank: int, size: int) -> Any:
    """The parts of a ``VllmConfig`` that the decision code reads, on real configuration objects."""
    compilation = CompilationConfig(
        level=CompilationLevel.PIECEWISE,
        cudagraph_mode=CUDAGraphMode.PIECEWISE,
        cudagraph_capture_sizes=list(CAPTURE_SIZES),
        splitting_ops=list(CompilationConfig._attention_ops),
    )
    compilation.init_with_cudagraph_sizes(list(CAPTURE_SIZES))
    config = SimpleNamespace(
        parallel_config=ParallelConfig(data_parallel_size=size, data_parallel_rank=rank),
        compilation_config=compilation,
        model_config=SimpleNamespace(enforce_eager=False),
        scheduler_config=SimpleNamespace(max_num_seqs=32),
    )
    config.pad_for_cudagraph = MethodType(VllmConfig.pad_for_cudagraph, config)
    return config


def dispatcher(config: Any) -> CudagraphDispatcher:
    made = CudagraphDispatcher(config)
    made.initialize_cudagraph_keys(CUDAGraphMode.PIECEWISE, 1)
    return made


def padded_for_graphs(config: Any, num_tokens: int) -> int:
    """As ``execute_model`` does it, in its own lines."""
    return config.pad_for_cudagraph(num_tokens) if num_tokens <= CAPTURE_SIZES[-1] else num_tokens


class DecidingRunner(GPUModelRunner):
    """A ``GPUModelRunner`` that can agree on token counts and graphs, and nothing else."""

    def __init__(self, rank: int, size: int, speculative: bool) -> None:
        assert not speculative
        self.vllm_config = make_config(rank, size)
        self.cudagraph_dispatcher = dispatcher(self.vllm_config)
        self.rank = rank
        self.input_batch = SimpleNamespace(num_reqs=0)

    def run(self, step: RankStep) -> list[Any]:
        """One entry for the step's forward: [graph mode, tokens of this rank, tokens of all ranks, no split]."""
        time.sleep(step.delay)
        if step.dummy:
            return dummy.execute_dummy_batch(
                lambda worker: self._dummy_step(1, idle=True), SimpleNamespace(model_runner=self)
            )
        if step.profile:
            return self._dummy_step(step.profile, idle=False)
        return phases.execute_model(type(self)._real_step, self, step)

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
        num_tokens, across = self._pad(padded_for_graphs(self.vllm_config, output.total_num_scheduled_tokens))
        mode, _ = self.cudagraph_dispatcher.dispatch(BatchDescriptor(num_tokens=num_tokens))
        return [self._forward(num_tokens, across, mode)]

    def _dummy_step(self, num_tokens: int, idle: bool) -> list[Any]:
        def upstream(
            runner: DecidingRunner, num_tokens: int, cudagraph_runtime_mode: CUDAGraphMode = CUDAGraphMode.NONE
        ) -> list[Any]:
            rows = num_tokens  # that an eager step runs in 0.11.0, which pads the counts only
            num_tokens, across = runner._pad(num_tokens)
            assert not idle or cudagraph_runtime_mode != CUDAGraphMode.NONE or rows == num_tokens
            if cudagraph_runtime_mode != CUDAGraphMode.NONE:
                mode, _ = runner.cudagraph_dispatcher.dispatch(BatchDescriptor(num_tokens=num_tokens))
                assert mode == cudagraph_runtime_mode
            return [runner._forward(num_tokens, across, cudagraph_runtime_mode)]

        return dummy_run(upstream, self, num_tokens)

    def _pad(self, num_tokens: int) -> tuple[int, Any]:
        padding, across = self.get_dp_padding(num_tokens)
        return num_tokens + padding, across

    def _forward(self, num_tokens: int, across: Any, mode: CUDAGraphMode) -> list[Any]:
        with set_forward_context(None, self.vllm_config, num_tokens=num_tokens, num_tokens_across_dp=across):
            counts = tokens_across_dp(get_forward_context().dp_metadata)
        assert counts is not None
        return [mode.value, num_tokens, counts.tolist(), False]


class Oracle:
    """Every rank runs the count of the largest, replayed if there is a graph for it; profiling runs eager."""

    def __init__(self, speculative: bool) -> None:
        assert not speculative
        self._config = make_config(0, 2)
        self._dispatcher = dispatcher(self._config)

    def decide(self, row: tuple[RankStep, ...]) -> list[tuple[int, list[int]]]:
        """(graph mode, tokens of all ranks) for the step's one forward."""
        counts = [
            padded_for_graphs(self._config, sum(r.scheduled for r in step.requests))
            if step.requests
            else step.profile or 1
            for step in row
        ]
        mode, _ = self._dispatcher.dispatch(BatchDescriptor(num_tokens=max(counts)))
        return [(0 if row[0].profile else mode.value, [max(counts)] * len(row))]
