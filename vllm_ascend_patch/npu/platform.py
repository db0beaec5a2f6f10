# SPDX-License-Identifier: Apache-2.0
"""The out-of-tree platform that vLLM activates for Ascend NPUs.

Answers vLLM's questions about the device and checks a configuration before any process is started, so that what this
port cannot serve ends in one readable error. Deciding *whether* the platform is active is ``plugin.py``'s business.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import torch_npu
from vllm.logger import init_logger
from vllm.platforms.interface import Platform, PlatformEnum

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)


class NPUPlatform(Platform):
    """Ascend NPUs behind torch_npu: device type ``npu``, dispatch key ``PrivateUse1``, collectives ``hccl``."""

    _enum = PlatformEnum.OOT
    device_name: str = "npu"
    device_type: str = "npu"
    dispatch_key: str = "PrivateUse1"
    dist_backend: str = "hccl"
    device_control_env_var: str = "ASCEND_RT_VISIBLE_DEVICES"
    ray_device_key: str = "NPU"
    ray_noset_device_env_vars = ["RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"]  # noqa: RUF012 (upstream's type)
    # Inductor has no NPU backend in stock torch: functions that vLLM compiles at import stay eager.
    simple_compile_backend: str = "eager"
    supported_quantization = ["compressed-tensors", "ascend", "gpt_oss_mxfp4"]  # noqa: RUF012

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """bfloat16 and float16: the fused attention operator takes no float32 (torch_npu operator documentation)."""
        return [torch.bfloat16, torch.float16]

    # -- questions about the device ------------------------------------------------------------------------------

    @classmethod
    def import_kernels(cls) -> None:
        """Stock vLLM's compiled kernels are CUDA's; none is loaded."""

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        torch_npu.npu.set_device(device)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return torch_npu.npu.get_device_name(device_id)

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return torch_npu.npu.get_device_properties(device_id).total_memory

    @classmethod
    def get_current_memory_usage(cls, device: torch.types.Device | None = None) -> float:
        torch_npu.npu.reset_peak_memory_stats(device)
        return torch_npu.npu.max_memory_allocated(device)

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch_npu.npu.manual_seed_all(seed)

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> None:
        """CUDA compute capabilities mean nothing here."""
        return None

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return True

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        """Asked before a configuration is checked as a whole: what upstream would answer in words of its own."""
        from vllm_ascend_patch.core.weight_formats import method_problem

        from .config_check import NotServable

        problem = method_problem("this checkpoint", quant)
        if problem is not None:
            raise NotServable(f"{problem} If --quantization {quant} asks for it, leave the option out.")
        super().verify_quantization(quant)

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        from .config_check import check_dtype

        check_dtype(dtype)

    @classmethod
    def opaque_attention_op(cls) -> bool:
        """True: otherwise a compiled model bakes in the profiling run's missing attention metadata (wrong tokens)."""
        return True

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        """Whether upstream may capture graphs; which kind is decided in ``compilation_defaults.py``."""
        from .compilation_defaults import graphs_supported

        return graphs_supported()

    @classmethod
    def use_all_gather(cls) -> bool:
        return True

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Where models need them, for layers with states; ``states.py`` switches them off for the others."""
        from .states import hybrid_caches

        return hybrid_caches()

    @classmethod
    def supports_v1(cls, model_config: Any) -> bool:
        """Asked in releases that still have the V0 engine, which this port does not run on."""
        return True

    @classmethod
    def is_async_output_supported(cls, enforce_eager: bool | None) -> bool:
        """Asked in the same releases, of the V0 engine."""
        return True

    @classmethod
    def check_runner_kv_caches_multi_layer(cls) -> None:
        """The runner is upstream's own, which binds several attention layers of one index correctly."""

    # -- classes that vLLM loads by name -------------------------------------------------------------------------

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "vllm_ascend_patch.npu.communicator.NPUCommunicator"

    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str:
        hook = hasattr(Platform, "set_additional_forward_context")
        return f"vllm_ascend_patch.npu.graphs.{'NPUGraphWrapper' if hook else 'PreparingGraphWrapper'}"

    @classmethod
    def get_attn_backend_cls(cls, selected_backend: Any, *args: Any, **kwargs: Any) -> str:
        from vllm_ascend_patch.npu.attention.backend_choice import backend_class_path

        return backend_class_path(selected_backend, *args, **kwargs)

    @classmethod
    def get_mla_prefill_backend_cls(cls, mla_selector_config: Any) -> type[Any]:
        from vllm_ascend_patch.npu.attention.mla.prefill import NPUMLAPrefillBackend

        return NPUMLAPrefillBackend

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        from .kernel_overrides import register

        register()

    # -- configuration -------------------------------------------------------------------------------------------

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        """Before options are parsed: ``--quantization`` takes one more name."""
        from .modelslim.recognition import register

        register()

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Check what the port can serve, then fill in what upstream leaves to the platform. Raises ``NotServable``."""
        from vllm_ascend_patch.seams.moe.eplb import apply_eplb_option
        from vllm_ascend_patch.seams.moe.facts import check_moe

        from .config_check import NotServable, check_config
        from .config_defaults import apply_defaults, take_back_backend
        from .modelslim.recognition import recognise
        from .mxfp4 import take_over_mxfp4
        from .profiler import check_profiler
        from .ray_actors import show_npus
        from .size_check import check_sizes

        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            recognise(vllm_config)
            take_back_backend(vllm_config)
            check_config(vllm_config)
            take_over_mxfp4(vllm_config)
            apply_defaults(vllm_config)
            apply_eplb_option(vllm_config)
            check_sizes(vllm_config)
            check_profiler(vllm_config)
            check_moe(vllm_config)  # last: whether graphs are captured is one of the defaults
            show_npus(vllm_config, cls.ray_noset_device_env_vars)
        except ValueError as error:
            raise NotServable(str(error)) from None

    @classmethod
    def set_additional_forward_context(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What the step agreed on, for attention and MoE layers: see ``seams/moe/tokens.py``."""
        from vllm_ascend_patch.seams.moe.tokens import forward_context_fields

        return forward_context_fields(**kwargs)
