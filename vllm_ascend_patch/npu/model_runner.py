# SPDX-License-Identifier: Apache-2.0
"""Upstream's V1 model runner on an NPU: nothing but the names that its constructor needs.

Input preparation, padding and profiling stay upstream's, so that patches on ``GPUModelRunner`` take effect here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ascend_patch.npu.cuda_names import map_cuda_names

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


class NPUModelRunner(GPUModelRunner):
    """``GPUModelRunner`` with ``torch.cuda`` names mapped to ``torch.npu``."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        map_cuda_names()
        super().__init__(vllm_config, device)
        # A shared prefix is no special case for the fused operator, and the graph decision stays computable early.
        self.cascade_attn_enabled = False
