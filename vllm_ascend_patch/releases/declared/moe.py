# SPDX-License-Identifier: Apache-2.0
"""Declares the patches that give stock vLLM an MoE path on NPUs. Imports neither torch nor vLLM.

What they do is in ``seams/moe/``.
"""

from __future__ import annotations

from vllm_ascend_patch.patching import Kind, Patch

_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_RUNNER = f"{_FUSED_MOE}.runner.moe_runner:MoERunner"
_ROUTER = "vllm.model_executor.layers.fused_moe.router.base_router:eplb_map_to_physical_and_record"
_NO_DEVICE_KERNEL = "none: the upstream kernel is CUDA's, and an out-of-tree device has no hook for it"
_FORWARD_WHY = (
    "An out-of-tree device has no MoE path: every layer takes the communication method that the step agreed on."
)
_FORWARD_HOW = (
    "Sets the step's method for the duration of upstream's forward; experts and communication are ours, gates, routing and "
    "shared experts upstream's."
)
_EPLB_READS = ("topk_ids", "expert_load_view", "logical_to_physical_map", "logical_replica_count")
_EPLB_WHY = (
    "On other devices upstream returns logical expert ids unmapped, or fails to compile the mapping: wrong experts with "
    "redundancy, no load counts."
)
_W8A8 = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe"
_W8A8_WHY = "The int8 experts of compressed-tensors checkpoints run on CUDA and CPU kernels only."
_W8A8_HOW = "A subclass that loads weights as upstream does and runs them on grouped matmuls."
_W8A8_UPSTREAM = "none: quantised MoE methods have no registration for out-of-tree devices"
_FORWARD_UPSTREAM = "none: upstream offers per-layer experts to out-of-tree devices, but no choice of method per step"

PATCHES: tuple[Patch, ...] = (
    Patch(
        id="moe-forward",
        target=f"{_RUNNER}._forward_impl",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.forward:forward_impl",
        reads=("hidden_states",),
        releases=">=0.20",
        why=_FORWARD_WHY,
        how=_FORWARD_HOW,
        upstream=_FORWARD_UPSTREAM,
        remove_when="vLLM lets a platform choose the dispatch/combine method of a forward",
    ),
    Patch(
        id="moe-forward-default-runner",
        target=f"{_FUSED_MOE}.runner.default_moe_runner:DefaultMoERunner.forward_impl",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.forward:forward_impl",
        reads=("hidden_states",),
        releases=">=0.17,<0.20",
        why=_FORWARD_WHY,
        how=_FORWARD_HOW,
        upstream=_FORWARD_UPSTREAM,
        remove_when="the releases with this class are no longer supported",
    ),
    Patch(
        id="moe-forward-layer",
        target=f"{_FUSED_MOE}.layer:FusedMoE.forward_impl",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.forward:forward_impl",
        reads=("hidden_states",),
        releases="<0.17",
        why=_FORWARD_WHY,
        how=_FORWARD_HOW,
        upstream=_FORWARD_UPSTREAM,
        remove_when="the releases with this class are no longer supported",
    ),
    Patch(
        id="moe-output-reduced",
        target=f"{_RUNNER}._fused_output_is_reduced",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.reduction:output_is_reduced",
        releases=">=0.20",
        why="Every method returns complete sums; upstream would add them up over tensor parallel ranks once more.",
        how="Answers True for layers whose experts are ours.",
        upstream="none: the property asks for a modular kernel object, which an out-of-tree device does not have",
        remove_when="the property asks the quantisation method instead of its kernel",
    ),
    Patch(
        id="moe-ungated",
        target=f"{_FUSED_MOE}.config:FusedMoEConfig.__post_init__",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.ungated:accept_ungated",
        releases=">=0.24",
        why="Experts without a gate (Nemotron's squared ReLU) are refused on an out-of-tree device.",
        how="Lets the refusal, upstream's last statement there, pass for such experts.",
        upstream="none: the check asks for CUDA, XPU and ROCm by name",
        remove_when="the check asks the platform or the MoE method",
    ),
    Patch(
        id="router-topk-softmax",
        target="vllm._custom_ops:topk_softmax",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.router_kernels:topk_softmax",
        reads=("topk_weights", "topk_ids", "token_expert_indices", "gating_output"),
        why="Softmax routing calls a CUDA kernel.",
        how="npu_moe_gating_top_k_softmax, or torch operators when a bias takes part in the selection.",
        upstream=_NO_DEVICE_KERNEL,
        remove_when="vLLM's routers have a native path",
    ),
    Patch(
        id="router-topk-sigmoid",
        target="vllm._custom_ops:topk_sigmoid",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.router_kernels:topk_sigmoid",
        releases=">=0.15",
        reads=("topk_weights", "topk_ids", "token_expert_indices", "gating_output", "renormalize"),
        why="Sigmoid routing calls a CUDA kernel.",
        how="npu_moe_gating_top_k where weights are normalised and it takes the sizes, else torch operators in float32.",
        upstream=_NO_DEVICE_KERNEL,
        remove_when="vLLM's routers have a native path",
    ),
    Patch(
        id="router-grouped-topk",
        target=f"{_FUSED_MOE}.router.grouped_topk_router:grouped_topk",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.router_kernels:grouped_topk",
        reads=("gating_output", "topk", "renormalize", "num_expert_group", "topk_group", "scoring_func"),
        releases=">=0.15",
        why="On an out-of-tree device choosing experts in groups is a dozen operators per layer.",
        how="npu_moe_gating_top_k for sigmoid scores with normalised weights, where it takes the sizes; else upstream's.",
        upstream=_NO_DEVICE_KERNEL,
        remove_when="vLLM lets a platform register a router kernel",
    ),
    Patch(
        id="eplb-map",
        target=_ROUTER,
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.router_kernels:map_to_physical",
        reads=_EPLB_READS,
        aliases=(
            "vllm.models.deepseek_v4.nvidia.model:eplb_map_to_physical_and_record",
            "vllm.models.kimi_k3.nvidia.model:eplb_map_to_physical_and_record",
            "vllm.model_executor.layers.fused_moe.deep_gemm_mega_moe:eplb_map_to_physical_and_record",
        ),
        releases=">=0.15",
        why=_EPLB_WHY,
        how="The same mapping and counting in torch operators.",
        upstream="none: the mapping is a Triton kernel",
        remove_when="vLLM maps expert replicas without Triton",
    ),
    Patch(
        id="eplb-map-fused-moe",
        target=f"{_FUSED_MOE}.fused_moe:eplb_map_to_physical_and_record",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.router_kernels:map_to_physical",
        reads=_EPLB_READS,
        aliases=(f"{_FUSED_MOE}.layer:eplb_map_to_physical_and_record",),
        releases=">=0.11.1,<0.15",
        why=_EPLB_WHY,
        how="The same mapping and counting in torch operators.",
        upstream="none: the mapping is a Triton kernel",
        remove_when="the releases with the function in this module are no longer supported",
    ),
    Patch(
        id="moe-w8a8",
        target=f"{_W8A8}.compressed_tensors_moe_w8a8_int8:CompressedTensorsW8A8Int8MoEMethod",
        kind=Kind.REPLACE,
        implementation="vllm_ascend_patch.seams.moe.w8a8:NPUW8A8Int8MoEMethod",
        releases=">=0.20",
        why=_W8A8_WHY,
        how=_W8A8_HOW,
        upstream=_W8A8_UPSTREAM,
        remove_when="vLLM lets a platform register quantised MoE methods",
    ),
    Patch(
        id="moe-w4a16",
        target="vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe."
        "compressed_tensors_moe_wna16:CompressedTensorsWNA16MoEMethod",
        kind=Kind.REPLACE,
        implementation="vllm_ascend_patch.seams.moe.w4a16:NPUW4A16MoEMethod",
        releases=">=0.32",
        why="The int4 experts of compressed-tensors checkpoints run on CUDA and CPU kernels only.",
        how="A subclass that loads weights as upstream does and runs them on grouped matmuls.",
        upstream="none: quantised MoE methods have no registration for out-of-tree devices",
        remove_when="vLLM lets a platform register quantised MoE methods",
    ),
    Patch(
        id="moe-w4a8",
        target="vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe."
        "compressed_tensors_moe_w4a8_int8:CompressedTensorsW4A8Int8MoEMethod",
        kind=Kind.REPLACE,
        implementation="vllm_ascend_patch.seams.moe.w4a8:NPUW4A8Int8MoEMethod",
        releases=">=0.32",
        why="The int4 experts with int8 activations of compressed-tensors checkpoints run on Arm CPUs only.",
        how="A subclass that packs two weights into a byte and runs them on grouped matmuls.",
        upstream="none: quantised MoE methods have no registration for out-of-tree devices",
        remove_when="vLLM lets a platform register quantised MoE methods",
    ),
    Patch(
        id="moe-w8a8-one-module",
        target=f"{_W8A8}:CompressedTensorsW8A8Int8MoEMethod",
        kind=Kind.REPLACE,
        implementation="vllm_ascend_patch.seams.moe.w8a8_one_module:NPUW8A8Int8MoEMethod",
        releases="<0.20",
        why=_W8A8_WHY,
        how=_W8A8_HOW,
        upstream=_W8A8_UPSTREAM,
        remove_when="the releases with this class in this module are no longer supported",
    ),
    Patch(
        id="memory-profile",
        target="vllm.v1.worker.gpu_model_runner:GPUModelRunner.profile_run",
        kind=Kind.WRAP,
        implementation="vllm_ascend_patch.seams.moe.memory_profile:profile_run",
        why="Upstream profiles the largest batch only, which need not be the method that takes the most memory.",
        how="Adds one dummy pass at MC2's capacity where the largest batch takes another method.",
        upstream="none: upstream has one communication method per deployment",
        remove_when="vLLM profiles a list of token counts",
    ),
)
