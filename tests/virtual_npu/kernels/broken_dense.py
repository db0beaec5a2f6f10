# SPDX-License-Identifier: Apache-2.0
"""Calls that break one limit each: caches, norms, rotation, quantisation, local routing. Tables for test_every_limit.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vllm_ascend_patch.virtual_npu.kernels import (
    activation,
    init_routing,
    kv_cache,
    norm,
    paged_attention,
    permute,
    quant_matmul,
    quantised_activation,
    rope,
    static_quant,
)

from .broken_calls import Legal, Table, half, i8, i32, i64, zeros

QINT8 = 12  # c10/core/ScalarType.h


def tables() -> Iterator[Table]:
    """Per operator a legal call, and changes with the text they must provoke."""
    ids = i32(3, 2)
    yield (
        Legal(
            init_routing.moe_init_routing_v2,
            x=zeros(3, 4),
            expert_idx=ids,
            expert_num=8,
            expert_tokens_num_flag=True,
            x_dtype=None,
        ),
        [
            ({"x": zeros(3, 4, 1)}, "x must have 2 dimension"),
            ({"x": zeros(3, 4, dtype=torch.float64)}, "x must be float16"),
            ({"expert_idx": i32(3)}, "expert_idx must have 2 dimension"),
            ({"offset": zeros(1)}, "offset must be None"),
            ({"expert_tokens_num_type": 3}, "expert_tokens_num_type must be 0, 1 or 2"),
            ({"x_dtype": 1}, "argument x_dtype is not modelled"),
            ({"drop_pad_mode": 1}, "drop_pad_mode 1 is not modelled"),
            ({"scale": half(3)}, "scale must be float32"),
        ],
    )
    yield (
        Legal(init_routing.moe_init_routing, x=zeros(3, 4), row_idx=ids, expert_idx=ids, active_num=3),
        [
            ({"x": zeros(3)}, "x must have 2 dimension"),
            ({"x": i8(3, 4)}, "x must be float16"),
            ({"active_num": -1}, "active_num must not be negative"),
            ({"row_idx": ids + 6}, r"row_idx must lie in \[0, 6\)"),
            ({"row_idx": i32(3)}, "row_idx must have 2 dimension"),
            ({"row_idx": i32(3, 1)}, "row_idx must have shape"),
        ],
    )
    yield (
        Legal(init_routing.moe_compute_expert_tokens, sorted_expert_for_source_row=i32(3), num_expert=2),
        [
            ({"sorted_expert_for_source_row": i32(3, 1)}, "must have 1 dimension"),
            ({"sorted_expert_for_source_row": i64(3)}, "must be int32"),
            ({"sorted_expert_for_source_row": i32(1).expand(2**24)}, r"fewer than 2\*\*24"),
            ({"sorted_expert_for_source_row": i32(3) + 2}, r"must lie in \[0, 2\)"),
        ],
    )
    rows = half(1, 2, 32)
    yield (
        Legal(
            kv_cache.scatter_pa_kv_cache,
            key=rows,
            value=rows,
            key_cache=half(1, 16, 2, 32),
            value_cache=half(1, 16, 2, 32),
            slot_mapping=i32(1),
            cache_mode=None,
        ),
        [
            ({"key": half(1, 1, 2, 32)}, "compressed cache"),
            ({"compress_lens": i32(1)}, "argument compress_lens is not modelled"),
            ({"key": zeros(1, 2, 32, dtype=torch.float64)}, "key must be"),
            ({"key": half(1, 64)}, "key must have 3 dimension"),
            ({"value": half(1, 64)}, "value must have 3 dimension"),
            ({"key_cache": half(16, 2, 32)}, "key_cache must have 4 dimension"),
        ],
    )
    yield (
        Legal(
            kv_cache.reshape_and_cache,
            key=rows,
            value=rows,
            key_cache=half(1, 16, 2, 32),
            value_cache=half(1, 16, 2, 32),
            slot_indices=i32(1),
        ),
        [
            ({"key": zeros(1, 2, 32)}, "key must be float16"),
            ({"key": half(1, 64)}, "key must have 3 dimension"),
            ({"value": half(1, 64)}, "value must have 3 dimension"),
            ({"slot_indices": i32(2)}, "slot_indices .* must have shape"),
            ({"key": half(2, 2, 32), "value": half(2, 2, 32), "slot_indices": i32(2)}, "must not repeat"),
            ({"value": i8(1, 2, 32)}, "value must have the dtype of key"),
            ({"key_cache": i8(1, 16, 2, 32)}, "key_cache must have the dtype of key"),
            ({"key_cache": half(16, 2, 32)}, "key_cache must have 4 dimension"),
            ({"key_cache": half(1, 16, 2, 16)}, "key_cache must have shape"),
            ({"key_cache": half(1, 2, 16, 32).transpose(1, 2)}, "key_cache must be contiguous"),
            ({"slot_indices": i32(1) + 16}, r"must lie in \[0, 16\)"),
        ],
    )
    yield (
        Legal(kv_cache.scatter_nd_update_, self=zeros(4, 5), indices=i64(2, 1), updates=zeros(2, 5)),
        [
            ({"indices": zeros(2, 1)}, "indices must be int32"),
            ({"updates": half(2, 5)}, "updates must have the dtype of self"),
            ({"indices": i64(2, 3)}, "must index 1 to 2 dimensions"),
            ({"indices": i64(2, 1) + 4}, "indices of dimension 0 must lie"),
            ({"updates": zeros(2, 4)}, "updates must have shape"),
        ],
    )
    yield (
        Legal(norm.rms_norm, self=zeros(2, 4), gamma=zeros(4)),
        [
            ({"self": zeros(1, 1, 1, 1, 1, 1, 1, 1, 4)}, "x must have 1 to 8 dimensions"),
            ({"gamma": zeros(1, 2, 4)}, "gamma must have 1 to 2 dimensions"),
        ],
    )
    yield (
        Legal(norm.add_rms_norm, x1=zeros(2, 4), x2=zeros(2, 4), gamma=zeros(4)),
        [({"x2": half(2, 4)}, "x2 must have the dtype of x1")],
    )
    yield (
        Legal(
            paged_attention.paged_attention,
            query=half(1, 2, 32),
            key_cache=half(1, 16, 2, 32),
            value_cache=half(1, 16, 2, 32),
            num_kv_heads=2,
            num_heads=2,
            scale_value=1.0,
            block_table=i32(1, 1),
            context_lens=i32(1) + 3,
            out=half(1, 2, 32),
        ),
        [
            ({"query": half(2, 32)}, "query must have 3 dimension"),
            ({"query": zeros(1, 2, 32)}, "query must be float16"),
            ({"num_kv_heads": 3}, "num_kv_heads must divide 2"),
            ({"num_heads": 4}, "num_heads must be that of query, 2"),
            ({"context_lens": i64(1)}, "context_lens must be int32"),
            ({"key_cache": half(1, 8, 2, 32)}, "block_size must be a multiple of 16"),
            ({"key_cache": half(1, 16, 64)}, "key_cache must have 4 dimension"),
            ({"value_cache": half(2, 16, 2, 32)}, "value_cache must have shape"),
            ({"value_cache": zeros(1, 16, 2, 32)}, "value_cache must have the dtype of query"),
            ({"key_cache": half(1, 16, 2, 16)}, "head size of key_cache must be that of query, 32"),
            ({"query": half(1, 32, 2).transpose(1, 2)}, "query must be contiguous"),
            ({"key_cache": half(1, 2, 16, 32).transpose(1, 2)}, "key_cache must be contiguous"),
            ({"block_table": i64(1, 1)}, "block_table must be int32"),
            ({"block_table": i32(1)}, "block_table must have 2 dimension"),
            ({"block_table": i32(2, 1)}, "block_table must have 1 rows"),
            ({"context_lens": i32(2)}, "context_lens must have shape"),
            ({"context_lens": i32(1) + 17}, r"context_lens must be in \[0, 16\]"),
            ({"block_table": i32(1, 1) + 1}, "block ids of request 0 must lie"),
            ({"out": half(1, 2, 16)}, "out must have shape"),
            ({"out": zeros(1, 2, 32)}, "out must have the dtype of query"),
        ],
    )
    yield (
        Legal(permute.moe_token_permute, tokens=zeros(3, 4), indices=i64(3, 2)),
        [
            ({"tokens": zeros(3)}, "tokens must have 2 dimension"),
            ({"tokens": i8(3, 4)}, "tokens must be float16"),
            ({"indices": i64(3, 2, 1)}, "indices must have 1 or 2 dimension"),
            ({"indices": zeros(3, 2)}, "indices must be int32"),
            ({"indices": i64(2, 2)}, "indices must have the 3 tokens"),
            ({"tokens": half(1, 1).expand(2**15, 1), "indices": i64(1, 1).expand(2**15, 512)}, "fewer than 16777215"),
            ({"indices": i64(3, 2) - 1}, "indices must lie in"),
            ({"num_out_tokens": -7}, "num_out_tokens must be at least -6"),
        ],
    )
    yield (
        Legal(
            permute.moe_token_unpermute,
            permuted_tokens=zeros(6, 4),
            sorted_indices=torch.arange(6, dtype=torch.int32),
            probs=zeros(3, 2),
        ),
        [
            ({"permuted_tokens": zeros(6)}, "permuted_tokens must have 2 dimension"),
            ({"permuted_tokens": i8(6, 4)}, "permuted_tokens must be float16"),
            ({"sorted_indices": i32(6, 1)}, "sorted_indices must have 1 dimension"),
            ({"padded_mode": True}, "padded_mode=True is not modelled"),
            ({"probs": zeros(6)}, "probs must have 2 dimension"),
            ({"probs": i32(3, 2)}, "probs must be float16"),
            ({"probs": zeros(1, 513), "sorted_indices": i32(513)}, "top-k must be at most 512"),
        ],
    )
    yield (
        Legal(quant_matmul.dynamic_quant, input=half(3, 4)),
        [
            ({"dst_type": torch.float16}, "dst_type .* is not modelled"),
            ({"dst_type": 16}, "dtype number 16"),
            ({"smooth_scales": half(1, 4), "group_index": i32(1, 1)}, "group_index must have 1 dimension"),
            (
                {"smooth_scales": half(2, 4), "group_index": i32(1) + 3},
                "smooth_scales with group_index must have shape",
            ),
        ],
    )
    yield (
        Legal(quant_matmul.quant_matmul, x1=i8(3, 8), x2=i8(8, 4), scale=zeros(4), output_dtype=torch.float16),
        [
            ({"group_sizes": [1, 1, 1]}, "argument group_sizes is not modelled"),
            ({"y_scale": zeros(1)}, "argument y_scale is not modelled"),
            ({"x1": i32(3, 8)}, "int4 operands"),
            ({"x2": half(8, 4)}, "x2 must be int8"),
            ({"x1": i8(8)}, "x1 must have 2 to 6 dimensions"),
            ({"x1": i8(0, 8)}, "x1 must not be empty"),
            ({"scale": i64(4), "output_dtype": None}, "int64 scale with int8 output"),
            ({"scale": i64(4), "pertoken_scale": zeros(3)}, "scale must be float32 with pertoken_scale"),
            ({"scale": i64(4) + (1 << 32)}, "must have the bits of a float32"),
            ({"scale": zeros(4, 1)}, "scale must have 1 dimension"),
            ({"pertoken_scale": half(3)}, "pertoken_scale must be float32"),
            ({"bias": i32(1, 4)}, "a bias of more than one dimension"),
            ({"bias": i32(3)}, "bias must have shape"),
            ({"output_dtype": None, "offset": half(4)}, "offset must be float32"),
            ({"output_dtype": None, "offset": zeros(4, 1)}, "offset must have 1 dimension"),
            ({"output_dtype": None, "offset": zeros(3)}, "offset must have 1 or N = 4 elements"),
        ],
    )
    yield (
        Legal(static_quant.quantize, input=zeros(3, 4), scales=zeros(4) + 1, zero_points=i32(4), dtype=QINT8),
        [
            ({"input": i8(3, 4)}, "input must be float16"),
            ({"input": zeros(*[1] * 9)}, "input must have 1 to 8 dimensions"),
            ({"dtype": 3}, "dtype int32 is not modelled"),
            ({"dtype": 1}, "dtype with div_mode must be qint8"),
            ({"input": half(3, 4)}, "float16 input with div_mode"),
            ({"scales": half(4)}, "scales for float32 input must be float32 or bfloat16"),
            ({"input": half(3, 4).bfloat16()}, "scales for bfloat16 input must be bfloat16"),
            ({"scales": zeros(1, 4)}, "scales must have 1 dimension"),
            ({"axis": 2}, "axis must be one of the input's 2"),
            ({"zero_points": zeros(4)}, "zero_points must be int8"),
            ({"scales": zeros(3)}, "scales must have 1 or 4 elements"),
            ({"zero_points": i32(1)}, "zero_points must have shape"),
        ],
    )
    yield (
        Legal(
            static_quant.quantize,
            input=half(3, 4),
            scales=half(4),
            zero_points=half(4),
            dtype=1,
            axis=-1,
            div_mode=False,
        ),
        [
            ({"dtype": 15}, "dtype must be int8"),
            ({"scales": zeros(4)}, "scales for float16 input must be float16"),
            ({"scales": half(1, 4)}, "scales of more than one dimension"),
            ({"axis": -3}, "axis must be at least -2 and below 2"),
            ({"input": half(4), "axis": -2}, "axis -2 needs an input of 2 dimensions"),
            ({"zero_points": i32(4)}, "zero_points must be float16"),
        ],
    )
    yield (
        Legal(quantised_activation.swiglu_quant, x=zeros(2, 8), quant_mode=1),
        [
            ({"x": i32(2, 8)}, "x must be float16"),
            ({"x": zeros(8)}, "x must have at least 2 dimensions"),
            ({"quant_mode": 2}, "quant_mode must be 0 .static. or 1"),
            ({"dst_type": torch.float16}, "dst_type .* is not modelled"),
            ({"offsets": zeros(1)}, "argument offsets is not modelled"),
            ({"group_list_type": 2}, "group_list_type must be 0"),
            ({"group_index": i32(1, 1)}, "group_index must have 1 dimension"),
            ({"smooth_scales": half(1, 4)}, "smooth_scales must be float32"),
        ],
    )
    yield (
        Legal(
            quantised_activation.dequant_swiglu_quant,
            x=i32(3, 128),
            weight_scale=zeros(1, 128),
            activation_scale=zeros(3),
            group_index=i64(1) + 3,
            quant_mode=1,
        ),
        [
            ({"x": i32(3)}, "x must have 2 dimension"),
            ({"x": i32(3, 127)}, "last dimension of x must be even"),
            ({"swiglu_mode": 3}, "swiglu_mode must be 0, 1 or 2"),
            ({"quant_mode": 0, "group_index": None}, "quant_mode 0 .static"),
            ({"dst_type": torch.float16}, "dst_type .* is not modelled"),
            ({"quant_offset": zeros(1)}, "argument quant_offset is not modelled"),
            ({"activate_dim": 0}, "activate_dim 0 is not modelled"),
            ({"group_index": i64(1, 1)}, "group_index must have 1 dimension"),
            ({"group_index": i64(1) - 1}, "group_index must not be negative"),
            ({"bias": i32(1), "group_index": None}, "argument bias is not modelled"),
            ({"weight_scale": zeros(2, 128)}, "weight_scale must have shape"),
            ({"activation_scale": half(3)}, "activation_scale must be float32"),
            ({"activation_scale": zeros(4)}, "activation_scale must have shape"),
            ({"quant_scale": i32(1, 64)}, "quant_scale must be float16"),
            ({"quant_scale": zeros(1, 63)}, "quant_scale must have shape"),
        ],
    )
    yield (
        Legal(
            quantised_activation.grouped_matmul_swiglu_quant,
            x=i8(3, 32),
            weight=i8(2, 32, 64),
            group_list=torch.tensor([1, 3]),
            weight_scale=zeros(2, 64),
            x_scale=zeros(3),
        ),
        [
            ({"weight": half(2, 32, 64)}, "weight must be int8"),
            ({"weight": i8(2, 64)}, "weight must have 3 or 5 dimension"),
            ({"weight": i8(2, 2, 2, 32, 16)}, "a raw FRACTAL_NZ int8 weight must be"),
            ({"x": i8(32)}, "x must have 2 dimension"),
            ({"x": i8(3, 31)}, "weight must have K = 31 rows"),
            ({"weight": i8(2, 32, 63)}, "N must be even"),
            ({"weight": i8(2, 32, 10242)}, "K must be at most 65535 and N at most 10240"),
            ({"weight": i8(2, 65536, 2), "x": i8(3, 65536)}, "K must be at most 65535 and N at most 10240"),
            ({"x_scale": half(3)}, "x_scale must be float32"),
            ({"weight_scale": i32(2, 64)}, "weight_scale must be float16"),
            ({"group_list": i64(3)}, "one entry per expert"),
        ],
    )
    yield (
        Legal(
            quantised_activation.grouped_matmul_swiglu_quant_v2,
            x=i8(3, 32),
            weight=[i8(2, 32, 64)],
            weight_scale=[zeros(2, 64)],
            x_scale=zeros(3),
            group_list=torch.tensor([1, 3]),
        ),
        [
            ({"weight": [i32(2, 32, 8)]}, "int4 weights"),
            ({"bias": zeros(1)}, "bias must be None"),
            ({"dequant_dtype": 15}, "dequant_dtype must be 6"),
            ({"quant_mode": 1}, "quant_mode must be 0"),
            ({"x_dtype": 290}, "argument x_dtype is not modelled"),
            ({"weight_scale": [half(2, 64)]}, "weight_scale must be float32"),
            ({"group_list": i32(2)}, "group_list must be int64"),
            ({"group_list": i64(3)}, "one entry per expert"),
        ],
    )
    cos = zeros(1, 3, 1, 8)
    yield (
        Legal(rope.rotary_mul, self=zeros(2, 3, 4, 8), r1=cos, r2=cos),
        [
            ({"self": i8(2, 3, 4, 8)}, "input must be float16"),
            ({"r2": zeros(2, 3, 1, 8)}, "r2 .* must have shape"),
            ({"self": half(1000, 1, 1000, 2), "r1": half(1, 1, 1, 2), "r2": half(1, 1, 1, 2)}, "B and N must be below"),
            ({"rotate": zeros(8, 8)}, "argument rotate is not modelled"),
            ({"r1": zeros(3, 1, 8)}, "r1 must have 4 dimension"),
        ],
    )
    yield (
        Legal(
            rope.mrope,
            positions=i64(2),
            query=zeros(2, 128),
            key=zeros(2, 64),
            cos_sin_cache=zeros(4, 64),
            head_size=64,
        ),
        [
            ({"query": i32(2, 128)}, "query must be float16"),
            ({"positions": zeros(2)}, "positions must be int32"),
            ({"rotary_mode": "quarter"}, "rotary_mode must be 'half' or"),
            ({"positions": i64(3)}, "positions must have shape"),
            ({"key": zeros(3, 64)}, "key must have the 2 tokens of query"),
            ({"key": zeros(2)}, "key must have 2 dimension"),
            ({"cache_mode": "interleave"}, "cache_mode 'interleave' is not modelled"),
        ],
    )
    cos = zeros(2, 3, 1, 64)
    yield (
        Legal(
            rope.apply_rotary_pos_emb, query=zeros(2, 3, 4, 64), key=zeros(2, 3, 2, 64), cos=cos, sin=cos, layout="BSND"
        ),
        [
            ({"query": i32(2, 3, 4, 64)}, "query must be float16"),
            ({"key": zeros(2, 2, 2, 64)}, "key must have shape"),
            ({"sin": zeros(2, 3, 2, 64)}, "sin must have shape"),
            ({"cos": zeros(6, 1, 64)}, "cos in layout BSND must have 4 dimension"),
        ],
    )
    yield (
        Legal(activation.swiglu, self=zeros(2, 4)),
        [
            ({"self": zeros(1, 1, 1, 1, 1, 1, 1, 1, 4)}, "x must have 1 to 8 dimensions"),
            ({"dim": 2}, r"dim must be in \[-2, 2\)"),
        ],
    )
