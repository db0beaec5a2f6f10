# SPDX-License-Identifier: Apache-2.0
"""The places of vLLM that the upstream records describe besides the declared targets: what the seams and the port lean
on.

A change there does not stop a patch, but it is the first thing to read when a new release misbehaves.
"""

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_WORKER = "vllm.v1.worker.gpu_worker:Worker"
_DP = "vllm.v1.worker.dp_utils"
_FUSED_MOE = "vllm.model_executor.layers.fused_moe"

WATCHED: tuple[str, ...] = (
    # one step of the model runner
    f"{_RUNNER}.execute_model",
    f"{_RUNNER}._prepare_inputs",
    f"{_RUNNER}._determine_batch_execution_and_padding",
    f"{_RUNNER}._dummy_run",
    f"{_RUNNER}.profile_run",
    f"{_RUNNER}.get_dp_padding",
    f"{_RUNNER}._get_num_input_tokens",
    f"{_RUNNER}._init_device_properties",
    f"{_RUNNER}._sync_device",
    # the data-parallel agreement
    f"{_DP}:_run_ar",
    f"{_DP}:_synchronize_dp_ranks",
    f"{_DP}:coordinate_batch_across_dp",
    "vllm.forward_context:DPMetadata.num_tokens_across_dp",
    "vllm.forward_context:DPMetadata.make",
    "vllm.forward_context:set_forward_context",
    "vllm.forward_context:create_forward_context",
    # what is asked to foresee this rank's vote, and those of its drafter
    f"{_RUNNER}._allow_microbatching",
    f"{_RUNNER}._input_fits_in_drafter",
    "vllm.v1.spec_decode.eagle:EagleProposer.__init__",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer._determine_batch_execution_and_padding",
    "vllm.v1.cudagraph_dispatcher:CudagraphDispatcher.dispatch",
    "vllm.config:VllmConfig.pad_for_cudagraph",
    "vllm.config.vllm:VllmConfig.pad_for_cudagraph",
    # MoE
    f"{_FUSED_MOE}.layer:FusedMoE.forward_impl",
    f"{_FUSED_MOE}.layer:FusedMoE.maybe_all_reduce_tensor_model_parallel",
    f"{_FUSED_MOE}.layer:FusedMoE.select_experts",
    f"{_FUSED_MOE}.runner.default_moe_runner:DefaultMoERunner.forward_impl",
    f"{_FUSED_MOE}.runner.moe_runner:MoERunner._forward_impl",
    f"{_FUSED_MOE}.runner.moe_runner:MoERunner.do_naive_dispatch_combine",
    f"{_FUSED_MOE}.runner.moe_runner:MoERunner._fused_output_is_reduced",
    f"{_FUSED_MOE}.layer:UnquantizedFusedMoEMethod.apply",
    f"{_FUSED_MOE}.unquantized_fused_moe_method:UnquantizedFusedMoEMethod.apply",
    f"{_FUSED_MOE}.router.base_router:eplb_map_to_physical_and_record",
    "vllm.distributed.device_communicators.base_device_communicator:DeviceCommunicatorBase.dispatch",
    "vllm.distributed.device_communicators.base_device_communicator:DeviceCommunicatorBase.combine",
    # worker and platform
    f"{_WORKER}.init_device",
    f"{_WORKER}.determine_available_memory",
    f"{_WORKER}.execute_dummy_batch",
    f"{_WORKER}._maybe_get_memory_pool_context",
    "vllm.v1.worker.block_table:BlockTable.compute_slot_mapping",
    "vllm.platforms.interface:Platform.set_additional_forward_context",
    "vllm.platforms.interface:Platform.get_attn_backend_cls",
    "vllm.platforms.interface:Platform.opaque_attention_op",
    "vllm.plugins:load_general_plugins",
)
