# SPDX-License-Identifier: Apache-2.0
"""Upstream's V2 model runner on an NPU: nothing but what loading leaves out, and what graphs of whole steps need.

Everything else is upstream's, so that patches on ``GPUModelRunner`` take effect here; its Triton kernels are replaced before
(``kernel_overrides.py``), and what else it asks of the device is patched (``seams/port/runner_v2.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_ascend_patch import armed
from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.step.phases import trace_forwards

from .loading import CheckedLoading

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


class NPUModelRunnerV2(CheckedLoading, GPUModelRunner):
    """``GPUModelRunner`` of ``vllm.v1.worker.gpu``; the worker has mapped ``torch.cuda`` names to ``torch.npu`` before."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        serving.begin(self, vllm_config, armed.applied())
        super().__init__(vllm_config, device)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's; forwards are traced at the model, since no method runs them."""
        super().load_model(*args, **kwargs)
        if trace.enabled():
            trace_forwards(self.get_model())
        self._keep_attention_metadata()

    def _keep_attention_metadata(self) -> None:
        """A replay of a whole step asks for the step's metadata; other dummy forwards run without, as on V1."""
        prepare = self.model_state.prepare_attn

        def kept(input_batch: Any, cudagraph_mode: Any, *args: Any, **kwargs: Any) -> Any:
            step = serving.current().step
            step.attention = None
            if not step.dummy or cudagraph_mode == CUDAGraphMode.FULL or kwargs.get("for_capture"):
                step.attention = prepare(input_batch, cudagraph_mode, *args, **kwargs)
            return step.attention

        self.model_state.prepare_attn = kept

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, with this port's graph manager in the place of upstream's."""
        from .graphs_v2 import NPUGraphManager

        found = model_runner.ModelCudaGraphManager
        model_runner.ModelCudaGraphManager = NPUGraphManager
        try:
            super().initialize_kv_cache(*args, **kwargs)
        finally:
            model_runner.ModelCudaGraphManager = found

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; attention has to know, since rows of a forward without requests have no slots."""
        step = serving.entering(self).step
        before, step.dummy = step.dummy, True
        try:
            return super()._dummy_run(*args, **kwargs)
        finally:
            step.dummy = before
