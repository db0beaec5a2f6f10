# SPDX-License-Identifier: Apache-2.0
"""Which function is the reference kernel of which operator. A list and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import (
    activation,
    combine,
    dispatch,
    expert_balance,
    finalize_routing,
    fused_infer_attention,
    fused_infer_out,
    gating,
    grouped_matmul,
    init_routing,
    kv_cache,
    latent_context,
    norm,
    paged_attention,
    permute,
    quant_matmul,
    quantised_activation,
    rope,
    static_quant,
    storage_format,
    weight_quant,
)

Kernel = Callable[..., Any]

#: Dispatcher name (with overload) -> kernel. An operator that the installed wheel lacks is skipped.
KERNELS: Mapping[str, Kernel] = {
    "npu::_npu_moe_token_unpermute": permute.moe_token_unpermute_saving_rows,
    "npu::npu_add_rms_norm": norm.add_rms_norm,
    "npu::npu_apply_rotary_pos_emb": rope.apply_rotary_pos_emb,
    "npu::npu_attention_update": latent_context.attention_update,
    "npu::npu_clipped_swiglu": activation.clipped_swiglu,
    "npu::npu_dequant_swiglu_quant": quantised_activation.dequant_swiglu_quant,
    "npu::npu_dynamic_quant": quant_matmul.dynamic_quant,
    "npu::npu_fused_infer_attention_score": fused_infer_attention.fused_infer_attention_score,
    "npu::npu_fused_infer_attention_score.out": fused_infer_out.fused_infer_attention_score_out,
    "npu::npu_fused_infer_attention_score_v2": fused_infer_attention.fused_infer_attention_score_v2,
    "npu::npu_fused_infer_attention_score_v2.out": fused_infer_out.fused_infer_attention_score_v2_out,
    "npu::npu_gather_pa_kv_cache": latent_context.gather_pa_kv_cache,
    "npu::npu_grouped_matmul": grouped_matmul.grouped_matmul,
    "npu::npu_grouped_matmul.List": grouped_matmul.grouped_matmul,
    "npu::npu_grouped_matmul_swiglu_quant": quantised_activation.grouped_matmul_swiglu_quant,
    "npu::npu_grouped_matmul_swiglu_quant_v2": quantised_activation.grouped_matmul_swiglu_quant_v2,
    "npu::npu_moe_compute_expert_tokens": init_routing.moe_compute_expert_tokens,
    "npu::npu_moe_distribute_combine": combine.moe_distribute_combine,
    "npu::npu_moe_distribute_combine_v2": combine.moe_distribute_combine_v2,
    "npu::npu_moe_distribute_dispatch": dispatch.moe_distribute_dispatch,
    "npu::npu_moe_distribute_dispatch_v2": dispatch.moe_distribute_dispatch_v2,
    "npu::npu_moe_finalize_routing": finalize_routing.moe_finalize_routing,
    "npu::npu_moe_gating_top_k": gating.moe_gating_top_k,
    "npu::npu_moe_gating_top_k_softmax": gating.moe_gating_top_k_softmax,
    "npu::npu_moe_gating_top_k_softmax_v2": gating.moe_gating_top_k_softmax_v2,
    "npu::npu_moe_init_routing": init_routing.moe_init_routing,
    "npu::npu_moe_init_routing_v2": init_routing.moe_init_routing_v2,
    "npu::npu_moe_re_routing": finalize_routing.moe_re_routing,
    "npu::npu_moe_token_permute": permute.moe_token_permute,
    "npu::npu_moe_token_unpermute": permute.moe_token_unpermute,
    "npu::npu_moe_update_expert": expert_balance.moe_update_expert,
    "npu::npu_mrope": rope.mrope,
    "npu::npu_quant_matmul": quant_matmul.quant_matmul,
    "npu::npu_quantize": static_quant.quantize,
    "npu::npu_rms_norm": norm.rms_norm,
    "npu::npu_rotary_mul": rope.rotary_mul,
    "npu::npu_scatter_nd_update_": kv_cache.scatter_nd_update_,
    "npu::npu_scatter_pa_kv_cache": kv_cache.scatter_pa_kv_cache,
    "npu::npu_swiglu": activation.swiglu,
    "npu::npu_swiglu_quant": quantised_activation.swiglu_quant,
    "npu::npu_weight_quant_batchmatmul": weight_quant.weight_quant_batchmatmul,
    "atb::_npu_paged_attention": paged_attention.paged_attention,
    "atb::_npu_reshape_and_cache": kv_cache.reshape_and_cache,
}

#: Kernels that take the NPU tensors themselves.
DEVICE_KERNELS: Mapping[str, Kernel] = {
    "npu::_npu_format_cast": storage_format.format_cast,
    "npu::_npu_fused_infer_attention_score_get_max_workspace": fused_infer_out.max_workspace,
    "npu::_npu_fused_infer_attention_score_infer_output": fused_infer_out.infer_output,
    "npu::_npu_fused_infer_attention_score_v2_get_max_workspace": fused_infer_out.max_workspace,
    "npu::_npu_fused_infer_attention_score_v2_infer_output": fused_infer_out.infer_output_v2,
    "npu::_npu_format_cast.aclnn": storage_format.format_cast,
    "npu::_npu_format_cast.input_dtype": storage_format.format_cast,
    "npu::npu_format_cast": storage_format.format_cast,
    "npu::npu_format_cast.Tensor": storage_format.format_cast_like,
}

#: Tensor arguments that must be in FRACTAL_NZ. A plain tensor with the five dimensions of the format's tiles is what the
#: page says, but CANN's host code asks for five dimensions of storage, of which torch_npu gives a plain tensor one.
NZ_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "npu::npu_grouped_matmul_swiglu_quant": frozenset({"weight"}),
    "npu::npu_grouped_matmul_swiglu_quant_v2": frozenset({"weight"}),
}

#: Operators that take plain layouts only.
ND_OPERATORS: frozenset[str] = frozenset(
    {
        "npu::npu_moe_distribute_combine",
        "npu::npu_moe_distribute_combine_v2",
        "npu::npu_moe_distribute_dispatch",
        "npu::npu_moe_distribute_dispatch_v2",
    }
)

#: Tensor arguments that the real operator takes from host memory.
HOST_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "atb::_npu_paged_attention": frozenset({"context_lens"}),
}

#: Schemas of the ATB operators, which the wheel defines only where libatb.so (NNAL) is installed. Both wheels, from the
#: signatures exported by libop_plugin_atb.so.
ATB_SCHEMAS: Mapping[str, str] = {
    "_npu_reshape_and_cache": (
        "(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_indices) -> ()"
    ),
    "_npu_paged_attention": (
        "(Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, int num_heads, float scale_value, "
        "Tensor block_table, Tensor context_lens, Tensor(a!) out, *, Tensor? workspace=None) -> ()"
    ),
}
