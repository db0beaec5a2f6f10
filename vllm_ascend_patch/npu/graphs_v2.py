# SPDX-License-Identifier: Apache-2.0
"""Graphs of whole decode steps on model runner V2, whose graph manager captures and replays them itself.

Pieces are captured as on V1 (``graphs.py``). A replay of a whole step runs no Python of the model: the key lengths of its
attention, the rows that are real and the method of its experts are brought up to date before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch_npu
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.moe.tokens import forward_context_fields

from .attention.graph_tasks import GraphTasks
from .attention.layout import BLOCK_SIZE


class _Captures(CudaGraphManager):
    """Upstream's captures, between upstream's classes: while one is made, the step has the tasks of its attention."""

    tasks: dict[Any, GraphTasks]
    _capture_descs: dict[Any, list[Any]]
    _candidates: dict[Any, list[Any]]

    def capture(self, create_forward_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        step = serving.current().step

        def create(desc: Any, warmup: bool) -> Callable[[Any], None]:
            if desc.cg_mode != CUDAGraphMode.FULL or warmup:
                return create_forward_fn(desc, warmup=warmup)
            step.tasks = self.tasks[desc] = GraphTasks()
            forward = create_forward_fn(desc, warmup=warmup)

            def captured(mode: Any) -> None:
                try:
                    forward(mode)
                finally:
                    step.tasks = None

            return captured

        super().capture(create, *args, **kwargs)


class NPUGraphManager(ModelCudaGraphManager, _Captures):
    """Updates a graph on a stream of its own, which comes after the graph's last replay, whose lengths it would change; the
    graph in turn waits for the updates at its first attention layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tasks = {}
        super().__init__(*args, **kwargs)
        self._updates = torch_npu.npu.Stream()
        self._replayed = torch_npu.npu.Event()

    def _init_candidates(self) -> None:
        """Upstream's, without whole steps of more rows than there are slots for padding."""
        super()._init_candidates()

        captured: dict[Any, list[Any]] = self._capture_descs
        candidates: dict[Any, list[Any]] = self._candidates

        def kept(descs: list[Any]) -> list[Any]:
            return [desc for desc in descs if desc.cg_mode != CUDAGraphMode.FULL or desc.num_tokens <= BLOCK_SIZE]

        self._capture_descs = {mode: kept(descs) for mode, descs in captured.items()}
        self._candidates = {key: kept(descs) for key, descs in candidates.items()}

    def release_graphs(self) -> None:
        super().release_graphs()
        self.tasks.clear()

    def run_fullgraph(self, desc: Any) -> Any:
        state = serving.current()
        metadata = state.step.attention
        agreement = state.session.current if state.session is not None else None
        forward_context_fields(
            attn_metadata=metadata,
            vllm_config=self.vllm_config,
            num_tokens=desc.num_tokens,
            num_tokens_across_dp=None if agreement is None else torch.tensor(agreement.padded_tokens),
            cudagraph_runtime_mode=CUDAGraphMode.FULL,
        )
        start = time.perf_counter_ns()
        self._updates.wait_event(self._replayed)
        self.tasks[desc].update(metadata, self._updates)
        output = super().run_fullgraph(desc)
        self._replayed.record()
        if trace.enabled():  # the model's own forward, which would tell, does not run
            tokens = {} if agreement is None else {"tokens_per_rank": list(agreement.padded_tokens)}
            trace.complete("forward", start, time.perf_counter_ns(), {"graph_mode": desc.cg_mode.name, **tokens})
        return output
