# SPDX-License-Identifier: Apache-2.0
"""The worker process of one NPU: binds the device, joins the process groups, builds the model runner.

Everything else is upstream's ``Worker``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch_npu
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.worker import gpu_worker
from vllm.v1.worker.gpu_worker import Worker

from vllm_ascend_patch import armed
from vllm_ascend_patch.releases import packed_int4
from vllm_ascend_patch.releases.guard import installed_release
from vllm_ascend_patch.seams import serving
from vllm_ascend_patch.seams.config import uses_runner_v2

from .accelerator import map_accelerator_names
from .compilation_defaults import graphs_supported
from .cuda_names import map_cuda_names
from .free_memory import requested_memory, snapshot
from .kv_limit import block_bytes, capped
from .modelslim.recognition import register as register_modelslim
from .profiler import map_profiler_names
from .states import register_layers

logger = init_logger(__name__)

_WARMUPS = ("kernel_warmup", "warmup_kernels")
"""What upstream runs to compile Triton kernels and CUDA's, for either model runner."""


class NPUWorker(Worker):
    """Upstream's worker on ``npu:<index>``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from vllm_ascend_patch.seams.moe.method import register_methods

        from . import int8_linear

        map_accelerator_names()
        map_cuda_names()
        if graphs_supported():
            from .graphs import map_graph_names

            map_graph_names()
        register_methods()
        int8_linear.register()
        register_modelslim()
        if packed_int4.served("W4A16", installed_release()):  # elsewhere weight_check.py refuses them
            from . import int4_linear

            int4_linear.register()
        register_layers()
        map_profiler_names(args[0] if args else kwargs["vllm_config"])
        with _triton_answered():
            super().__init__(*args, **kwargs)

    def init_device(self) -> None:
        """Bind the NPU, join the process groups, measure free memory, build the runner."""
        index = self._visible_device_index()
        self.device = torch.device(f"npu:{index}")
        torch_npu.npu.set_device(self.device)
        current_platform.check_if_supports_dtype(self.model_config.dtype)
        # vLLM derives each process group's device from the local rank, so the rank passed here is the device's index.
        self.local_rank = index
        self._join_process_groups(index)
        gpu_worker.set_random_seed(self.model_config.seed)
        gc.collect()
        torch_npu.npu.empty_cache()
        self.init_snapshot = snapshot(self.device)
        self.requested_memory = requested_memory(self.init_snapshot, self.cache_config)
        self._init_workspace_and_model_runner()
        logger.info(
            "NPU worker on %s (%s), rank %d, %.1f GiB free of %.1f GiB (%s model runner)",
            self.device,
            torch_npu.npu.get_device_name(index),
            self.rank,
            self.init_snapshot.free_memory / 2**30,
            self.init_snapshot.total_memory / 2**30,
            "V2" if uses_runner_v2(self.vllm_config) else "V1",
        )

    def _join_process_groups(self, index: int) -> None:
        """Upstream's groups, which ranks with other settings would make in another number: they are compared first."""
        from vllm_ascend_patch.seams.step.session import compare_settings

        original = gpu_worker.ensure_model_parallel_initialized

        def compare_first(*args: Any, **kwargs: Any) -> None:
            compare_settings(self.vllm_config, self.device, armed.applied())
            original(*args, **kwargs)

        gpu_worker.ensure_model_parallel_initialized = compare_first
        try:
            gpu_worker.init_worker_distributed_environment(
                self.vllm_config, self.rank, self.distributed_init_method, index, current_platform.dist_backend
            )
        finally:
            gpu_worker.ensure_model_parallel_initialized = original

    def _init_workspace_and_model_runner(self) -> None:
        """Upstream's method of this name, where there is one; earlier, what upstream's ``init_device`` ends with."""
        upstream = getattr(super(), "_init_workspace_and_model_runner", None)
        if upstream is not None:
            upstream()
            return
        make_workspace = getattr(gpu_worker, "init_workspace_manager", None)
        if make_workspace is not None:
            make_workspace(self.device, 1)  # one micro-batch: dual-batch overlap is refused (config_check.py)
        self.model_runner = self._make_model_runner()
        if self.rank == 0:
            gpu_worker.report_usage_stats(self.vllm_config)

    def determine_available_memory(self) -> int:
        """Upstream's, less what the graphs will take, and no more than attention can index."""
        specs = self.get_kv_cache_spec()
        return capped(self._memory_beside_graphs(), specs, block_bytes(self.vllm_config, specs))

    def _memory_beside_graphs(self) -> int:
        """Upstream's, less what the graphs will take: upstream measures that on its own devices only."""
        available = super().determine_available_memory()
        if not hasattr(self.model_runner, "profile_cudagraph_memory"):
            return available  # as older releases do on their own devices
        if not graphs_supported() or self.cache_config.kv_cache_memory_bytes:
            return available
        if self.vllm_config.compilation_config.cudagraph_mode.name == "NONE":
            return available
        self.cudagraph_memory_estimate = self.model_runner.profile_cudagraph_memory()
        self.peak_activation_memory += self.cudagraph_memory_estimate
        self.available_kv_cache_memory_bytes -= self.cudagraph_memory_estimate
        return int(available - self.cudagraph_memory_estimate)

    def compile_or_warm_up_model(self) -> Any:
        """Upstream's warm-up without its kernel warm-up, which imports CUDA-only model code."""
        found = {name: getattr(gpu_worker, name) for name in _WARMUPS if hasattr(gpu_worker, name)}
        for name in found:
            setattr(gpu_worker, name, _no_kernel_warmup)
        try:
            return super().compile_or_warm_up_model()
        finally:
            for name, original in found.items():
                setattr(gpu_worker, name, original)

    def shutdown(self) -> None:
        """Leave the data-parallel group in order, then upstream's; the oldest releases have nothing to shut down."""
        runner = getattr(self, "model_runner", None)
        if runner is not None:
            serving.end(runner)
        upstream = getattr(super(), "shutdown", None)
        if upstream is not None:
            upstream()

    def _make_model_runner(self) -> Any:
        if uses_runner_v2(self.vllm_config):
            from .model_runner_v2 import NPUModelRunnerV2

            return NPUModelRunnerV2(self.vllm_config, self.device)
        from .model_runner import NPUModelRunner

        return NPUModelRunner(self.vllm_config, self.device)

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[None]:
        """No sleep mode, hence no memory pool of its own."""
        return nullcontext()

    def _visible_device_index(self) -> int:
        """Index of this rank's NPU among the visible ones.

        A data-parallel engine gets a list of its own devices from vLLM, in its configuration or as
        ``ASCEND_RT_VISIBLE_DEVICES``; else it shares the visible list with the engines before it.
        """
        parallel = self.parallel_config
        assigned = getattr(parallel, "assigned_physical_gpu_ids", None)
        if assigned is not None:
            from vllm.platforms.interface import set_assigned_physical_gpu_ids

            set_assigned_physical_gpu_ids(assigned)
            return current_platform.logical_device_id_to_visible_device_id(self.local_rank)
        index, count = self.local_rank, torch_npu.npu.device_count()
        if parallel.distributed_executor_backend not in ("ray", "external_launcher"):
            before = (parallel.data_parallel_rank_local or 0) * parallel.world_size
            if before + parallel.world_size <= count:  # otherwise the visible list is this engine's alone
                index += before
        if index >= count:
            raise RuntimeError(
                f"rank {self.rank} needs NPU {index}, but torch_npu sees {count}; check ASCEND_RT_VISIBLE_DEVICES and "
                "the parallel sizes"
            )
        return index


def _no_kernel_warmup(*_: Any) -> None:
    """The port's kernels are torch_npu's and need none."""


@contextmanager
def _triton_answered() -> Iterator[None]:
    """Upstream's worker refuses model runner V2 without Triton from 0.33 on; its kernels are ours (kernel_overrides.py)."""
    found = getattr(gpu_worker, "HAS_TRITON", None)
    if found is None:
        yield
        return
    gpu_worker.HAS_TRITON = True
    try:
        yield
    finally:
        gpu_worker.HAS_TRITON = found
