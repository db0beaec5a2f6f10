# SPDX-License-Identifier: Apache-2.0
"""Upstream's V1 model runner on an NPU: nothing but what its constructor asks of the device, and what loading leaves out.

Input preparation, padding and profiling stay upstream's, so that patches on ``GPUModelRunner`` take effect here.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ascend_patch import armed
from vllm_ascend_patch.core import trace
from vllm_ascend_patch.seams import checkpoint, serving
from vllm_ascend_patch.seams.moe.expert_slots import follow
from vllm_ascend_patch.seams.step.phases import trace_forwards

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


class NPUModelRunner(GPUModelRunner):
    """``GPUModelRunner``; the worker has mapped ``torch.cuda`` names to ``torch.npu`` before."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        serving.begin(self, vllm_config, armed.applied())
        super().__init__(vllm_config, device)
        # A shared prefix is no special case for the fused operator, and the graph decision stays computable early.
        self.cascade_attn_enabled = False

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's; then what it does not do in old releases.

        Attention is made one operator to the compiler, which splits models there: newer releases ask the platform
        (``opaque_attention_op``), 0.10.1 does it on its own devices only. Forwards are traced, where no method runs them.
        """
        serving.entering(self)
        with checkpoint.marking(self.vllm_config.load_config.load_format):
            super().load_model(*args, **kwargs)
        follow(self)
        if trace.enabled() and not hasattr(GPUModelRunner, "_model_forward"):
            trace_forwards(self.get_model())
        for layer in self.vllm_config.compilation_config.static_forward_context.values():
            if getattr(layer, "use_direct_call", False):
                layer.use_direct_call = False

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's. One that fails leaves layers with their old weights, or their new ones, but none without."""
        serving.entering(self)
        iterator = args[0] if args else kwargs.get("weights_iterator")  # of the caller's: it may bring some layers only
        model = self.get_model()
        try:
            with nullcontext() if iterator is not None else checkpoint.whole_reload(model):
                super().reload_weights(*args, **kwargs)
        except Exception as error:
            checkpoint.put_back(model)
            raise RuntimeError(
                f"the weights were not reloaded: {error}. Layers that came before have the new weights, the others the old "
                "ones: load a complete checkpoint before the next request"
            ) from error

    def _init_device_properties(self) -> None:
        """Upstream reads the number of multiprocessors, for cascade attention alone, which is off."""
        self.num_sms = 1
