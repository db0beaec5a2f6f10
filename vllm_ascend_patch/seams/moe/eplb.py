# SPDX-License-Identifier: Apache-2.0
"""Turns vLLM's expert load balancing on, which vLLM itself refuses on out-of-tree devices while it reads ``--enable-eplb``.

Asked for as ``--additional-config '{"eplb_config": {...}}'``, the option that vLLM leaves to platforms, with the fields of
vLLM's own ``EPLBConfig``. Recording, deciding and moving weights stay upstream's.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

OPTION = "eplb_config"


def apply_eplb_option(vllm_config: VllmConfig) -> None:
    """Change the parallel configuration where the option is given; idempotent. ``ValueError`` for what cannot work."""
    import vllm.config as upstream

    options = vllm_config.additional_config
    wanted = options.get(OPTION) if isinstance(options, dict) else None
    if wanted is None:
        return
    parallel = vllm_config.parallel_config
    if not hasattr(upstream, "EPLBConfig"):
        raise ValueError(f"--additional-config '{{\"{OPTION}\": …}}' needs a vLLM that has EPLBConfig; leave it out")
    if not parallel.enable_expert_parallel or parallel.tensor_parallel_size * parallel.data_parallel_size == 1:
        raise ValueError(
            "expert load balancing needs experts on at least 2 ranks: add --enable-expert-parallel and raise "
            "--tensor-parallel-size or --data-parallel-size"
        )
    _check_experts(vllm_config)
    # Weights travel over the host: of upstream's transports the only one that needs neither NCCL nor NIXL.
    known = {field.name for field in fields(upstream.EPLBConfig)}  # earlier releases have neither of these two
    fixed = {name: value for name, value in (("use_async", False), ("communicator", "torch_gloo")) if name in known}
    parallel.eplb_config = upstream.EPLBConfig(**{**fixed, **wanted})
    if any(getattr(parallel.eplb_config, name) != value for name, value in fixed.items()):
        raise ValueError(
            "expert load balancing on Ascend NPUs moves weights between steps and over the host: leave use_async and "
            "communicator out of eplb_config"
        )
    parallel.enable_eplb = True


def _check_experts(vllm_config: VllmConfig) -> None:
    """``ValueError`` for quantised experts that cannot be moved: upstream moves an expert's part of every parameter, and
    parameters in transposed memory have none that lies in one piece."""
    from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase

    model = vllm_config.model_config
    if model is None or model.quantization is None:
        return
    if getattr(vllm_config.quant_config, "int4_experts", False):
        raise ValueError(
            "expert load balancing of int4 experts is not supported on Ascend NPUs: leave eplb_config out, or serve a "
            "checkpoint with int8 or unquantised experts"
        )
    if not hasattr(FusedMoEMethodBase, "supports_eplb"):
        raise ValueError(
            f"expert load balancing of {model.quantization} experts is not supported on Ascend NPUs with this vLLM release, "
            "which balances its own quantised experts only: leave eplb_config out, or serve the unquantised checkpoint"
        )
