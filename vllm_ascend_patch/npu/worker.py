# SPDX-License-Identifier: Apache-2.0
"""The worker process of one NPU: binds the device, joins the process groups, builds the model runner.

Everything else is upstream's ``Worker``.
"""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch_npu
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.worker import gpu_worker
from vllm.v1.worker.gpu_worker import Worker

from vllm_ascend_patch.npu.accelerator import map_accelerator_names

if TYPE_CHECKING:
    from vllm_ascend_patch.npu.model_runner import NPUModelRunner

logger = init_logger(__name__)


class NPUWorker(Worker):
    """Upstream's worker on ``npu:<index>``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from vllm_ascend_patch.npu import int8_linear
        from vllm_ascend_patch.seams.moe_method import register_methods

        map_accelerator_names()
        register_methods()
        int8_linear.register()
        super().__init__(*args, **kwargs)

    def init_device(self) -> None:
        """Bind the NPU, join the process groups, measure free memory, build the runner."""
        from vllm.utils.mem_utils import MemorySnapshot
        from vllm.utils.torch_utils import set_random_seed
        from vllm.v1.worker.utils import request_memory

        index = self._visible_device_index()
        self.device = torch.device(f"npu:{index}")
        torch_npu.npu.set_device(self.device)
        current_platform.check_if_supports_dtype(self.model_config.dtype)
        # vLLM derives each process group's device from the local rank, so the rank passed here is the device's index.
        self.local_rank = index
        gpu_worker.init_worker_distributed_environment(
            self.vllm_config, self.rank, self.distributed_init_method, index, current_platform.dist_backend
        )
        set_random_seed(self.model_config.seed)
        gc.collect()
        torch_npu.npu.empty_cache()
        self.init_snapshot = MemorySnapshot(device=self.device)
        self.requested_memory = request_memory(self.init_snapshot, self.cache_config)
        self._init_workspace_and_model_runner()
        logger.info(
            "NPU worker on %s (%s), rank %d, %.1f GiB free of %.1f GiB",
            self.device,
            torch_npu.npu.get_device_name(index),
            self.rank,
            self.init_snapshot.free_memory / 2**30,
            self.init_snapshot.total_memory / 2**30,
        )

    def compile_or_warm_up_model(self) -> Any:
        """Upstream's warm-up without its kernel warm-up, which imports CUDA-only model code."""
        original = gpu_worker.kernel_warmup
        gpu_worker.kernel_warmup = _no_kernel_warmup
        try:
            return super().compile_or_warm_up_model()
        finally:
            gpu_worker.kernel_warmup = original

    def _make_model_runner(self) -> NPUModelRunner:
        from vllm_ascend_patch.npu.model_runner import NPUModelRunner

        return NPUModelRunner(self.vllm_config, self.device)

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager:
        """No sleep mode, hence no memory pool of its own."""
        return nullcontext()

    def _visible_device_index(self) -> int:
        """Index of this rank's NPU among the visible ones.

        A data-parallel engine either got a list of its own devices from vLLM, or shares the whole visible list with the
        engines before it.
        """
        parallel = self.parallel_config
        assigned = getattr(parallel, "assigned_physical_gpu_ids", None)
        if assigned is not None:
            from vllm.platforms.interface import set_assigned_physical_gpu_ids

            set_assigned_physical_gpu_ids(assigned)
            return current_platform.logical_device_id_to_visible_device_id(self.local_rank)
        index = self.local_rank
        if parallel.distributed_executor_backend not in ("ray", "external_launcher"):
            local_dp_rank = parallel.data_parallel_rank_local
            index += (local_dp_rank if local_dp_rank is not None else 0) * parallel.world_size
        count = torch_npu.npu.device_count()
        if index >= count:
            raise RuntimeError(
                f"rank {self.rank} needs NPU {index}, but torch_npu sees {count}; check ASCEND_RT_VISIBLE_DEVICES and "
                "the parallel sizes"
            )
        return index


def _no_kernel_warmup(worker: Worker) -> None:
    """The port's kernels are torch_npu's and need none."""
