# SPDX-License-Identifier: Apache-2.0
"""What must be equal on all data-parallel ranks, read from vLLM's configuration. How it is compared is core's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.soc import Soc, detect_soc
from vllm_ascend_patch.seams.config import num_nodes, uses_runner_v2


def fingerprint(vllm_config: Any, device: torch.device, patches: Sequence[str]) -> dict[str, str]:
    """What must be the same on every data-parallel rank: software, patches, and settings that shape a step.

    Args:
        vllm_config: vLLM's configuration.
        device: this rank's NPU.
        patches: ids of the patches that this process has.
    """
    model, scheduler, parallel = vllm_config.model_config, vllm_config.scheduler_config, vllm_config.parallel_config
    compilation, speculative = vllm_config.compilation_config, vllm_config.speculative_config
    graph_mode = getattr(compilation, "cudagraph_mode", None)  # 0.10.0 has none
    capture_sizes = ",".join(str(size) for size in compilation.cudagraph_capture_sizes or ())
    settings: dict[str, Any] = {
        "patch set": _version("vllm-ascend-patch"),
        "patches": hashlib.sha256(",".join(sorted(patches)).encode()).hexdigest()[:12],
        "model runner": "V2" if uses_runner_v2(vllm_config) else "V1",
        "model": model.model,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "max model length": model.max_model_len,
        "enforce eager": model.enforce_eager,
        "max batched tokens": scheduler.max_num_batched_tokens,
        "max sequences": scheduler.max_num_seqs,
        "async scheduling": getattr(scheduler, "async_scheduling", None),
        "data parallel size": parallel.data_parallel_size,
        "tensor parallel size": parallel.tensor_parallel_size,
        "pipeline parallel size": parallel.pipeline_parallel_size,
        "expert parallel": parallel.enable_expert_parallel,
        "expert load balancing": _eplb(parallel),
        "all-to-all backend": getattr(parallel, "all2all_backend", None),
        "micro-batching": getattr(parallel, "enable_dbo", None),
        "graph mode": getattr(graph_mode, "name", graph_mode),
        "compile sizes": getattr(compilation, "compile_sizes", None),  # a warm-up step for each
        "graph sizes": hashlib.sha256(capture_sizes.encode()).hexdigest()[:12],
        "speculation": f"{speculative.method} {speculative.num_speculative_tokens}" if speculative else None,
        "SoC": _soc(device),
        "hosts": _hosts(parallel, device),
        "VLLM_ASCEND_PATCH_MOE_COMM": envs.VLLM_ASCEND_PATCH_MOE_COMM,
        "VLLM_ASCEND_PATCH_LINKS": envs.VLLM_ASCEND_PATCH_LINKS,
        # Decides MC2's capacity, and the vendor wants one value on all ranks.
        "HCCL_BUFFSIZE": os.environ.get("HCCL_BUFFSIZE"),
    }
    for package in ("vllm", "torch", "torch-npu"):
        settings[package] = _version(package)
    return {name: str(value) for name, value in settings.items()}


def _soc(device: torch.device) -> str:
    """The method that MoE layers communicate by depends on it."""
    if device.type != "npu":
        return device.type
    try:
        return detect_soc().value
    except MoEConfigError as error:
        return str(error)


def _hosts(parallel: Any, device: torch.device) -> int | str:
    """On A2 MC2 depends on it. It is counted from this host's part of the ranks, and hosts may have unequal parts; whether
    there are several is what ranks everywhere have to agree on, who then tell each other which host each is on."""
    hosts = num_nodes(parallel)
    if _soc(device) == Soc.A2.value:
        return hosts
    return "several" if hosts > 1 else "one"


def _eplb(parallel: Any) -> Any:
    """Rearrangements move experts between ranks, after so many steps."""
    return getattr(parallel, "eplb_config", True) if getattr(parallel, "enable_eplb", False) else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
