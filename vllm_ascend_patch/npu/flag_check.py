# SPDX-License-Identifier: Apache-2.0
"""Refuses, before a process is started, options of vLLM that this port does not serve with any model.

What depends on the model is ``core/model_support.py``'s. Each option is looked for where a release keeps it; releases
without it have nothing there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_HERE = "is not supported on Ascend NPUs by this port"
# They take single tokens out of pages by slot, as vLLM's CUDA layout has them; here a page has all keys, then all values.
_BY_TOKEN = (
    "ExampleConnector",
    "SharedStorageConnector",
    "LMCacheConnectorV1",
    "LMCacheMPConnector",
    "HiSparseConnector",
)
_BATCH_INVARIANT = ("VLLM_BATCH_INVARIANT", "VLLM_KERNEL_OVERRIDE_BATCH_INVARIANT")


def check_flags(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for the first option that is not served, with what to do in its place."""
    for name in _BATCH_INVARIANT:
        value = os.environ.get(name, "").strip()
        if value not in ("", "0"):
            raise ValueError(
                f"{name}={value} {_HERE}: batch-invariant kernels are CUDA's and Triton's. Unset it; tokens may then depend "
                "on what else is in the batch."
            )
    if vllm_config.lora_config is not None:
        raise ValueError(
            f"--enable-lora {_HERE}: vLLM's LoRA kernels are CUDA's and Triton's. Merge the adapter into the checkpoint and "
            "serve that."
        )
    offload = _offload(vllm_config)
    if offload is not None:
        raise ValueError(
            f"{offload} {_HERE}: weights are read from device memory. Start without it; a larger --tensor-parallel-size, or "
            "--enable-expert-parallel over more ranks, makes each rank's share smaller."
        )
    outputs = getattr(vllm_config, "aux_output_config", None) or vllm_config.model_config
    if getattr(outputs, "enable_return_routed_experts", False):
        raise ValueError(
            f"--enable-return-routed-experts {_HERE}: which experts a token went to is not recorded. Start without it."
        )
    # Elastic expert parallelism is not asked about: vLLM itself refuses it here, since it refuses --enable-eplb.
    if getattr(vllm_config.parallel_config, "enable_fault_tolerance", False):
        raise ValueError(
            f"--enable-fault-tolerance {_HERE}: it needs the DeepEP or NIXL all2all backend. Start without it: a lost rank "
            "ends the deployment with an error that names it."
        )


def _offload(vllm_config: VllmConfig) -> str | None:
    """The option that asks for weights in host memory, as it was given; None where none was."""
    owner = getattr(vllm_config, "offload_config", None)
    in_place = getattr(owner, "uva", None) or vllm_config.cache_config
    gibibytes = getattr(in_place, "cpu_offload_gb", 0) or 0
    if gibibytes > 0:
        return f"--cpu-offload-gb {gibibytes:g}"
    layers = getattr(getattr(owner, "prefetch", None), "offload_group_size", 0) or 0
    return f"--offload-group-size {layers}" if layers > 0 else None


def check_attention_backend(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for another backend than this port's; asked after the model, for which vLLM may choose one."""
    config = getattr(vllm_config, "attention_config", None)
    variable = os.environ.get("VLLM_ATTENTION_BACKEND")
    if variable and not hasattr(config, "backend"):  # how releases without the option are asked
        raise ValueError(
            f"VLLM_ATTENTION_BACKEND={variable} {_HERE}, which brings its own attention backend. Unset the variable."
        )
    wanted: list[Any] = [getattr(config, "backend", None), *(getattr(config, "backend_per_kind", None) or {}).values()]
    for backend in wanted:
        name = getattr(backend, "name", "CUSTOM")
        if name != "CUSTOM":
            raise ValueError(
                f"--attention-backend {name} {_HERE}, which brings its own attention backend. Leave the option out."
            )


def check_connectors(vllm_config: VllmConfig) -> None:
    """Raise ``ValueError`` for a connector of KV caches that could not read this port's."""
    transfer = vllm_config.kv_transfer_config
    if transfer is None:
        return
    inside = (getattr(transfer, "kv_connector_extra_config", None) or {}).get("connectors") or []
    names = [transfer.kv_connector, *(one.get("kv_connector") for one in inside if isinstance(one, dict))]
    for name in names:
        if name in _BY_TOKEN:
            raise ValueError(
                f"--kv-transfer-config with {name} {_HERE}: it reads single tokens of a page of the KV cache, whose layout "
                "here is not the one it knows. Use a connector that moves whole blocks, or start without the option."
            )
