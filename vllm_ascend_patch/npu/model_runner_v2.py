# SPDX-License-Identifier: Apache-2.0
"""Upstream's V2 model runner on an NPU: nothing but what loading leaves out.

Everything else is upstream's, so that patches on ``GPUModelRunner`` take effect here; its Triton kernels are replaced before
(``kernel_overrides.py``), and what else it asks of the device is patched (``seams/port/runner_v2.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
