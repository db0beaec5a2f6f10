# SPDX-License-Identifier: Apache-2.0
"""Upstream's V1 model runner on an NPU: nothing but what its constructor asks of the device.

Input preparation, padding and profiling stay upstream's, so that patches on ``GPUModelRunner`` take effect here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


class NPUModelRunner(GPUModelRunner):
    """``GPUModelRunner``; the worker has mapped ``torch.cuda`` names to ``torch.npu`` before."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        # A shared prefix is no special case for the fused operator, and the graph decision stays computable early.
        self.cascade_attn_enabled = False

    def _init_device_properties(self) -> None:
        """Upstream reads the number of multiprocessors, for cascade attention alone, which is off."""
        self.num_sms = 1
