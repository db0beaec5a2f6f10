# SPDX-License-Identifier: Apache-2.0
"""vLLM's own decision code on a runner without a model: real ``GPUModelRunner`` and drafter methods, real graph dispatcher,
real data-parallel coordination, patched as in an engine. Only input preparation and forwards are left out.

Import under the virtual NPU.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode, ParallelConfig
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.spec_decode.eagle import EagleProposer
from vllm.v1.worker import dp_utils
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ascend_patch.seams.step import dummy, phases
from vllm_ascend_patch.seams.step.prepare import prepare_inputs

from .schedules import SPECULATIVE_TOKENS, RankStep

vllm_ascend_patch.apply()
assert hasattr(dp_utils._run_ar, "__wrapped__"), "the all-reduce is not patched"

CAPTURE_SIZES = [1, 2, 4, 8, 16, 24, 32]
MAX_MODEL_LEN = 4096


def make_config(rank: int, size: int, query_len: int) -> Any:
    """The parts of a ``VllmConfig`` that the decision code reads, on real configuration objects."""
    parallel = ParallelConfig(data_parallel_size=size, data_parallel_rank=rank, is_moe_model=True)
    compilation = CompilationConfig(
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        cudagraph_capture_sizes=CAPTURE_SIZES,
        max_cudagraph_capture_size=CAPTURE_SIZES[-1],
        mode=CompilationMode.VLLM_COMPILE,
        splitting_ops=list(CompilationConfig._attention_ops),
    )
    return SimpleNamespace(
        parallel_config=parallel,
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=32),
        lora_config=None,
        num_speculative_tokens=query_len - 1,
        speculative_config=SimpleNamespace(
            num_speculative_tokens=query_len - 1,
            enforce_eager=False,
            disable_padded_drafter_batch=False,
            use_dflash=lambda: False,
        )
        if query_len > 1
        else None,
        observability_config=SimpleNamespace(cudagraph_metrics=False),
    )


def dispatcher(config: Any, mode: CUDAGraphMode, query_len: int) -> CudagraphDispatcher:
    made = CudagraphDispatcher(config)
    made.initialize_cudagraph_keys(mode, query_len)
    return made


class DecidingRunner(GPUModelRunner):
    """A ``GPUModelRunner`` that can decide, and nothing else."""

    def __init__(self, rank: int, size: int, speculative: bool) -> None:
        self.uniform_decode_query_len = 1 + (SPECULATIVE_TOKENS if speculative else 0)
        config = make_config(rank, size, self.uniform_decode_query_len)
        self.vllm_config = config
        self.parallel_config, self.compilation_config = config.parallel_config, config.compilation_config
        self.model_config = SimpleNamespace(is_encoder_decoder=False)
        self.speculative_config, self.lora_config = config.speculative_config, None
        self.num_spec_tokens = self.uniform_decode_query_len - 1
        self.effective_drafter_max_model_len = MAX_MODEL_LEN
        self.reorder_batch_threshold = 1
        self.cudagraph_dispatcher = dispatcher(config, CUDAGraphMode.FULL_AND_PIECEWISE, self.uniform_decode_query_len)
        self.input_batch = SimpleNamespace(lora_id_to_lora_request={}, num_reqs=0)
        self.drafter = None
        if speculative:
            drafter = EagleProposer.__new__(EagleProposer)
            drafter.vllm_config, drafter.dp_rank = config, rank
            drafter.needs_extra_input_slots = drafter.parallel_drafting = False
            drafter.cudagraph_dispatcher = dispatcher(config, CUDAGraphMode.PIECEWISE, 1)
            self.drafter = drafter

    # -- one step, as execute_model + sample_tokens and _dummy_run go through it ------------------------------------

    def run(self, step: RankStep) -> list[Any]:
        """What upstream decided, one entry per forward: [mode, tokens of this rank, tokens of all ranks, split]."""
        time.sleep(step.delay)
        if step.dummy:
            return dummy.execute_dummy_batch(lambda worker: self._dummy_step(1), SimpleNamespace(model_runner=self))
        if step.profile:
            return self._dummy_step(step.profile, is_profile=True)
        return phases.execute_model(type(self)._real_step, self, step)

    def _real_step(self, step: RankStep) -> list[Any]:
        scheduled = np.array([r.scheduled for r in step.requests], dtype=np.int32)
        names = [f"request-{i}" for i in range(len(step.requests))]
        self.input_batch.num_reqs, self.input_batch.req_ids = len(names), names
        self.input_batch.num_computed_tokens_cpu = np.array([r.computed for r in step.requests], dtype=np.int32)
        self.input_batch.num_prompt_tokens = np.array([r.prompt for r in step.requests], dtype=np.int32)
        output = SimpleNamespace(
            total_num_scheduled_tokens=int(scheduled.sum()),
            num_scheduled_tokens=dict(zip(names, scheduled.tolist(), strict=True)),
            scheduled_spec_decode_tokens={
                n: [0] * r.drafts for n, r in zip(names, step.requests, strict=True) if r.drafts
            },
            scheduled_encoder_inputs={},
        )
        prepare_inputs(lambda runner, scheduler_output, tokens: time.sleep(step.preparation), self, output, scheduled)
        decided = [
            self._outcome(
                self._determine_batch_execution_and_padding(
                    num_tokens=int(scheduled.sum()),
                    num_reqs=len(names),
                    num_scheduled_tokens_np=scheduled,
                    max_num_scheduled_tokens=int(scheduled.max()),
                    allow_microbatching=self._allow_microbatching(len(names), scheduled),
                )
            )
        ]
        if self.drafter is not None:
            longest = int((self.input_batch.num_computed_tokens_cpu + scheduled).max())
            fits = self._input_fits_in_drafter(SimpleNamespace(max_seq_len=longest))
            for tokens in (int(scheduled.sum()), len(names)) if fits else (1, 1):
                decided.append(self._draft_outcome(self.drafter._determine_batch_execution_and_padding(tokens)))
        return decided

    def _dummy_step(self, num_tokens: int, is_profile: bool = False) -> list[Any]:
        query_len = 1 if is_profile else self.uniform_decode_query_len
        num_tokens = num_tokens if is_profile else query_len

        def upstream(runner: DecidingRunner, num_tokens: int, is_profile: bool = False) -> list[Any]:
            outcome = self._determine_batch_execution_and_padding(
                num_tokens=num_tokens,
                num_reqs=num_tokens // query_len,
                num_scheduled_tokens_np=np.full(num_tokens // query_len, query_len, dtype=np.int32),
                max_num_scheduled_tokens=query_len,
                force_eager=is_profile,
                force_uniform_decode=not is_profile,
                force_has_lora=False,
                force_num_active_loras=0,
            )
            decided = [self._outcome(outcome)]
            if self.drafter is not None:
                graphs = outcome[0] != CUDAGraphMode.NONE
                for _ in range(2):
                    decided.append(
                        self._draft_outcome(
                            self.drafter._determine_batch_execution_and_padding(num_tokens, use_cudagraphs=graphs)
                        )
                    )
            return decided

        return dummy.dummy_run(upstream, self, num_tokens, is_profile=is_profile)

    @staticmethod
    def _outcome(outcome: Any) -> Any:
        mode, descriptor, split, across, _ = outcome
        return [mode.value, descriptor.num_tokens, across.tolist(), split]

    @staticmethod
    def _draft_outcome(outcome: Any) -> Any:
        mode, tokens, across = outcome
        return [mode.value, tokens, across.tolist(), False]
