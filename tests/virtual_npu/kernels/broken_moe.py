# SPDX-License-Identifier: Apache-2.0
"""Calls that break one limit each: gating, replicas, finalising, grouped products. Tables for test_every_limit.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vllm_ascend_patch.virtual_npu.kernels import expert_balance, finalize_routing, gating, grouped_matmul

from .broken_calls import Legal, Table, half, i8, i32, i64, zeros


def tables() -> Iterator[Table]:
    """Per operator a legal call, and changes with the text they must provoke."""
    yield from _choosing()
    yield from _bringing_back()
    yield from _multiplying()


def _choosing() -> Iterator[Table]:
    yield (
        Legal(gating.moe_gating_top_k, x=zeros(2, 16), k=2),
        [
            ({"x": i32(2, 16)}, "x must be float16"),
            ({"group_select_mode": 2}, "group_select_mode must be 0 or 1"),
            ({"group_count": 0}, "group_count must be positive"),
            ({"input_ids": i32(2), "tid2eid": i32(4, 2)}, "hash routing"),
        ],
    )
    yield (
        Legal(gating.moe_gating_top_k_softmax, x=zeros(2, 16), k=2),
        [
            ({"x": zeros(16)}, "x must have 2 or 3 dimension"),
            ({"x": i32(2, 16)}, "x must be float16"),
            ({"finished": zeros(3).bool()}, "finished must have shape"),
        ],
    )
    table = torch.tensor([[1, 0], [1, 1]], dtype=torch.int32)
    scales = {"expert_scales": zeros(2, 1), "pruning_threshold": zeros(1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTUAL_NPU_SOC", "A3")
        yield (
            Legal(expert_balance.moe_update_expert, expert_ids=i32(2, 1), eplb_table=table, balance_mode=1),
            [
                ({"expert_ids": i32(2)}, "expert_ids must have 2 dimension"),
                ({"expert_ids": half(2, 1)}, "expert_ids must be int32"),
                ({"eplb_table": i32(2)}, "eplb_table must have 2 dimension"),
                ({"eplb_table": i64(2, 2)}, "eplb_table must be int32"),
                ({"expert_ids": i32(2, 1) + 2}, r"expert_ids must lie in \[0, 2\)"),
                ({"eplb_table": i32(2, 2)}, "replica counts .* must be in"),
                (scales | {"expert_scales": i32(2, 1)}, "expert_scales must be float16"),
                (scales | {"expert_scales": zeros(2, 2)}, "expert_scales must have shape"),
                (scales | {"pruning_threshold": half(1)}, "pruning_threshold must be float32"),
                (scales | {"pruning_threshold": zeros(2)}, "pruning_threshold must have shape"),
                (scales | {"active_mask": zeros(2)}, "active_mask must be bool"),
                (scales | {"active_mask": zeros(3).bool()}, "active_mask must have shape"),
                (scales | {"active_mask": torch.tensor([False, True])}, "all True first, then False"),
            ],
        )


def _bringing_back() -> Iterator[Table]:
    bias = {"bias": zeros(5, 4), "export_for_source_row": i32(3, 2)}
    yield (
        Legal(
            finalize_routing.moe_finalize_routing,
            expanded_permuted_rows=zeros(6, 4),
            skip1=None,
            skip2=None,
            bias=None,
            scales=zeros(3, 2),
            expanded_src_to_dst_row=i32(6),
            export_for_source_row=None,
            drop_pad_mode=2,
        ),
        [
            ({"expanded_permuted_rows": i32(6, 4)}, "expanded_permuted_rows must be float16"),
            ({"expanded_src_to_dst_row": i32(3, 2)}, "expanded_src_to_dst_row must have 1 dimension"),
            ({"scales": zeros(6)}, "scales must have 2 dimension"),
            ({"scales": None, "k": -1}, "k must be positive"),
            ({"expanded_src_to_dst_row": i32(5)}, "must hold 2 per token"),
            ({"expanded_src_to_dst_row": i32(6) - 2}, "must be at least -1"),
            ({"skip1": zeros(3, 5)}, "skip1 must have shape"),
            (bias | {"export_for_source_row": i64(3, 2)}, "export_for_source_row must be int32"),
            (bias | {"export_for_source_row": i32(6)}, "export_for_source_row must have shape"),
            (bias | {"bias": half(5, 4)}, "bias must have the dtype of the rows"),
            (bias | {"bias": zeros(5, 3)}, "bias must have shape"),
            (bias | {"export_for_source_row": i32(3, 2) + 5}, r"export_for_source_row must lie in \[0, 5\)"),
        ],
    )
    yield (
        Legal(finalize_routing.moe_re_routing, tokens=half(3, 4), expert_token_num_per_rank=torch.tensor([[1, 2]])),
        [
            ({"tokens": half(3)}, "tokens must have 2 dimension"),
            ({"expert_token_num_per_rank": i64(3)}, "expert_token_num_per_rank must have 2 dimension"),
            ({"expert_token_num_per_rank": half(1, 2)}, "expert_token_num_per_rank must be int32"),
            ({"expert_token_num_per_rank": torch.tensor([[4, -1]])}, "counts must not be negative"),
            ({"tokens_dtype": 1}, "argument tokens_dtype is not modelled"),
            ({"per_token_scales": half(3)}, "per_token_scales must be float32"),
            ({"per_token_scales": zeros(2)}, "per_token_scales must have shape"),
        ],
    )


def _multiplying() -> Iterator[Table]:
    listed = [zeros(8, 5), zeros(8, 5)]
    quant = {"x": [i8(4, 8)], "weight": [i8(2, 8, 5)], "scale": [zeros(2, 5)], "output_dtype": torch.float16}
    whole = quant | {"scale": None, "output_dtype": torch.int32}
    yield (
        Legal(
            grouped_matmul.grouped_matmul,
            x=[zeros(4, 8)],
            weight=[zeros(2, 8, 5)],
            group_list=torch.tensor([1, 3]),
            group_list_type=1,
            group_type=0,
            split_item=2,
        ),
        [
            ({"x": []}, "x and weight must hold 1 to 128 tensors"),
            ({"x": [zeros(4, 8).double()]}, "x must be float16"),
            ({"x": [zeros(2, 2, 8)]}, "x must have 2 dimension"),
            ({"x": [zeros(4, 8)] * 2}, "group_type 0 with several x"),
            ({"split_item": 4}, "split_item must be 0 to 3"),
            ({"weight": [zeros(2, 8, 5)] * 2}, "a weight of a list must have 2 dimension"),
            ({"weight": listed, "bias": [zeros(5)]}, "bias must hold 2 tensor"),
            ({"scale": [zeros(2, 5)]}, "inputs take no scale and no per_token_scale"),
            (whole | {"group_list": i64(3, 2), "group_list_type": 2}, "pairs must have shape"),
            (whole | {"group_list": i64(2, 2) + 2, "group_list_type": 2}, r"expert of a pair must be in \[0, 2\)"),
            (whole | {"scale": [zeros(2, 5)]}, "int32 output takes no scale"),
            (quant | {"scale": [i64(2, 5)]}, "int64 scale"),
            (quant | {"scale": [half(2, 5)]}, "scale must be bfloat16 or float32"),
            (quant | {"weight": [i8(8, 5)] * 2, "scale": [zeros(4), zeros(4)]}, "scale of one expert must have shape"),
            (quant | {"per_token_scale": [zeros(4)] * 2}, "per_token_scale must hold one tensor"),
            (quant | {"per_token_scale": [half(4)]}, "per_token_scale must be float32"),
        ],
    )
    yield (
        Legal(grouped_matmul.grouped_matmul, x=[zeros(4, 8)], weight=[zeros(8, 5)], group_type=-1),
        [
            ({"split_item": 2}, "group_type -1 needs split_item 0 or 1"),
            ({"weight": listed}, "group_type -1 needs one weight per x"),
            ({"group_list": torch.tensor([4])}, "group_type -1 takes no group_list"),
            ({"weight": [zeros(1, 8, 5)]}, "a weight of a list must have 2 dimension"),
            ({"x": [zeros(1, 1, 1, 1, 1, 4, 8)]}, "x must have 2 to 6 dimensions"),
            ({"x": [zeros(4, 7)]}, "weight 0 must have 7 rows"),
            (quant | {"weight": [i8(8, 5)], "scale": [zeros(5)]}, "group_type -1 with scales"),
        ],
    )
