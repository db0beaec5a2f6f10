# SPDX-License-Identifier: Apache-2.0
"""Upstream's V1 model runner on an NPU: nothing but what its constructor asks of the device, what loading leaves out, and
key lengths on the host (``drafted_lengths.py``).

Input preparation, padding and profiling stay upstream's, so that patches on ``GPUModelRunner`` take effect here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ascend_patch import armed
from vllm_ascend_patch.core import trace
from vllm_ascend_patch.releases import graphs, guard
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.step.phases import trace_forwards

from .attention.layout import BLOCK_SIZE
from .compilation_defaults import graphs_supported
from .drafted_lengths import ExactLengths
from .loading import CheckedLoading

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class NPUModelRunner(CheckedLoading, ExactLengths, GPUModelRunner):
    """``GPUModelRunner``; the worker has mapped ``torch.cuda`` names to ``torch.npu`` before."""

    model: Any

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        serving.begin(self, vllm_config, armed.applied())
        super().__init__(vllm_config, device)
        # A shared prefix is no special case for the fused operator, and the graph decision stays computable early.
        self.cascade_attn_enabled = False
        self._keeps_slots = graphs.keeps_slots(guard.installed_release() or "")

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's; then what it does not do in old releases.

        Attention is made one operator to the compiler, which splits models there: newer releases ask the platform
        (``opaque_attention_op``), 0.10.1 does it on its own devices only. Forwards are traced, where no method runs them.
        """
        super().load_model(*args, **kwargs)
        if graphs_supported():
            from .graphs import with_updates

            self.model = with_updates(self.model)
        if trace.enabled() and not hasattr(GPUModelRunner, "_model_forward"):
            trace_forwards(self.get_model())
        for layer in self.vllm_config.compilation_config.static_forward_context.values():
            if getattr(layer, "use_direct_call", False):
                layer.use_direct_call = False

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; attention has to know, since rows of a forward without requests have no slots."""
        step = serving.entering(self).step
        before, step.dummy = step.dummy, True
        if self._keeps_slots and self.compilation_config.cudagraph_mode.has_full_cudagraphs():
            self._forget_slots()
        try:
            return super()._dummy_run(*args, **kwargs)
        finally:
            step.dummy = before

    def _forget_slots(self) -> None:
        """A graph of a whole step would write to the slots of the last step, which may hold a prefix that is used again."""
        for table in self.input_batch.block_table.block_tables:
            table.slot_mapping.gpu[:BLOCK_SIZE].fill_(-1)

    def _check_and_update_cudagraph_mode(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, less the graphs of whole steps with more rows than there are slots for padding (``layout.py``)."""
        super()._check_and_update_cudagraph_mode(*args, **kwargs)
        from .graphs import drop_large_full_graphs

        drop_large_full_graphs(self.cudagraph_dispatcher)

    def _init_kv_zero_meta(self) -> None:
        """Upstream's collects addresses for a Triton kernel."""

    def _zero_block_ids(self, block_ids: list[int]) -> None:
        """Upstream's without Triton: pages that were states of layers are zeroed before they hold keys and values."""
        if not block_ids:
            return
        blocks = torch.tensor(block_ids, device=self.device)
        for layer in self.compilation_config.static_forward_context.values():
            cache = getattr(layer, "kv_cache", None)
            if isinstance(cache, torch.Tensor):
                cache.unflatten(0, (self.kv_cache_config.num_blocks, -1)).index_fill_(0, blocks, 0)

    def _init_device_properties(self) -> None:
        """Upstream reads the number of multiprocessors, for cascade attention alone, which is off."""
        self.num_sms = 1
