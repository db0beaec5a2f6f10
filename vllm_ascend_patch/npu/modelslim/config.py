# SPDX-License-Identifier: Apache-2.0
"""vLLM's quantisation configuration of ModelSlim checkpoints: which layer is computed by which method.

What the description says is ``core/modelslim.py``'s; who sets it up, and what is refused, ``recognition.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from vllm_ascend_patch.core import modelslim
from vllm_ascend_patch.core.modelslim import Description
from vllm_ascend_patch.core.weight_formats import method_problem


class ModelSlimConfig(QuantizationConfig):
    """Per layer float, or int8 with static or dynamic activations, as the checkpoint's description says."""

    description: Description
    files_checked = False  # vLLM checks a configuration more than once

    @property
    def int8_experts(self) -> bool:
        """Whether routed experts take int8 activations; ``seams/config.py`` asks."""
        return self.description.int8_experts

    @property
    def int4_experts(self) -> bool:
        """Whether routed experts have int4 weights; ``size_check.py`` asks."""
        return self.description.int4_experts

    def get_name(self) -> Any:
        return modelslim.METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0  # CUDA's measure

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: upstream would look for one name, and the format has had several."""
        return []

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, hf_config: Any = None, **_: Any
    ) -> None:
        """Upstream's question about every checkpoint that names a method, asked before upstream looks the method up, whose
        error for one that it does not know lists those that other devices have. ``NotServable`` for what is not served."""
        from vllm_ascend_patch.npu.config_check import NotServable

        method = str(hf_quant_cfg.get("quant_method") or "")
        if method == "mxfp4" and getattr(hf_config, "model_type", "") == "gpt_oss":
            return  # which upstream gives a name of its own
        problem = method_problem("this checkpoint", method)
        if problem is not None:
            raise NotServable(problem)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSlimConfig:
        """Upstream's question for a ``quantization_config``, which these checkpoints do not have."""
        return cls()

    def maybe_update_config(self, model_name: str, *_: Any, **__: Any) -> None:
        """Upstream's call with the checkpoint: read its description. ``NotServable`` where there is none."""
        from .recognition import describe

        self.description = describe(model_name)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Upstream's call with the model's own names of modules."""
        self.description = self.description.renamed(hf_to_vllm_mapper.apply_dict)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """The method of a linear layer or of experts; None for what stays float."""
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

        from vllm_ascend_patch.seams.moe.modelslim import (
            NPUModelSlimMixedMoEMethod,
            NPUModelSlimMoEMethod,
            is_experts,
        )
        from vllm_ascend_patch.seams.moe.modelslim_int4 import NPUModelSlimInt4MoEMethod

        from .linear import DynamicLinearMethod, StaticLinearMethod

        if isinstance(layer, LinearBase):
            kind = self.description.linear_type(prefix, self.packed_modules_mapping)
            if kind == modelslim.FLOAT:
                return UnquantizedLinearMethod()
            return (StaticLinearMethod if kind == modelslim.STATIC else DynamicLinearMethod)(self, prefix, kind)
        if is_experts(layer):
            kind = self.description.expert_type(prefix)
            if kind == modelslim.FLOAT:
                return None
            methods = {modelslim.INT4: NPUModelSlimInt4MoEMethod, modelslim.MIXED: NPUModelSlimMixedMoEMethod}
            method = methods.get(kind, NPUModelSlimMoEMethod)
            return method(layer.moe_config)
        return None
