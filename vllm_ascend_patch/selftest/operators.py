# SPDX-License-Identifier: Apache-2.0
"""Runs what the package calls operators with, on one NPU, at the shapes of a small model's layers.

Wherever the package has a function of its own around operators, that function is called; attention's operators are called
as ``npu/attention`` calls them, whose classes need vLLM. The comparison is ``compared.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch_npu

from vllm_ascend_patch.core.int8_scales import as_bits
from vllm_ascend_patch.core.moe.comm.local_routing import sort_by_expert, sum_present, weighted_sum
from vllm_ascend_patch.core.moe.experts import ExpertWeights, expert_mlp, quantize_rows
from vllm_ascend_patch.core.moe.gating import sigmoid_top_k
from vllm_ascend_patch.core.moe.router_ops import top_k_softmax
from vllm_ascend_patch.core.packed_int4 import PER_WORD, group_scales

from .compared import Comparison
from .result import Result, attempt, require
from .values import name_of

PART = "operators"

#: Every operator of namespace npu that the package calls and that does not communicate.
CALLED = (
    "npu_attention_update",
    "npu_clipped_swiglu",
    "npu_dequant_swiglu_quant",
    "npu_dynamic_quant",
    "npu_format_cast",
    "npu_fused_infer_attention_score",
    "npu_fused_infer_attention_score_v2",
    "npu_gather_pa_kv_cache",
    "npu_grouped_matmul",
    "npu_grouped_matmul_swiglu_quant",
    "npu_moe_finalize_routing",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_init_routing_v2",
    "npu_moe_token_unpermute",
    "npu_quant_matmul",
    "npu_quantize",
    "npu_scatter_pa_kv_cache",
    "npu_swiglu",
    "npu_weight_quant_batchmatmul",
)

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 1024, 256, 8, 4
GROUP = 32  # inputs that share a scale of int4 weights
ODD_INTERMEDIATE = 96  # not a multiple of 64: the unfused way of int8 experts
TOKENS = (1, 7, 64)
BLOCK, BLOCKS = 128, 6


def check(device: torch.device) -> Iterator[Result]:
    """One result per operator, in order; a call that fails is the failure of all operators that were not reached."""
    torch.manual_seed(0)
    comparison = Comparison()
    failures: dict[str, str] = {}
    with torch.inference_mode(), comparison:
        for call in CALLS:
            for dtype in (torch.bfloat16, torch.float16):
                tried = attempt(PART, call.__name__, partial(_run, call, device, dtype))
                if not tried.ok:
                    failures[f"{call.__name__} in {name_of(dtype)}"] = tried.found
    for name in CALLED:
        yield attempt(PART, name, partial(_judge, comparison, name))
    for name, wrong in failures.items():
        yield Result(PART, name, False, wrong)


def _run(call: Callable[[torch.device, torch.dtype], None], device: torch.device, dtype: torch.dtype) -> str:
    call(device, dtype)
    return ""


def _judge(comparison: Comparison, name: str) -> str:
    require(name in comparison.calls, "no call of it came to its end")
    require(comparison.errors[name] <= 1.0, f"not the reference's result: {comparison.describe(name)}")
    return comparison.describe(name)


def _randn(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float32).to(dtype).to(device)


def _routes(tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.rand(tokens, EXPERTS).topk(TOP_K, dim=1).indices.to(torch.int32).to(device)
    return ids, torch.rand(tokens, TOP_K).to(device)


def routing(device: torch.device, dtype: torch.dtype) -> None:
    """Router, sorting by expert, the two ways back: all experts here, and half of them."""
    for tokens in TOKENS:
        rows = _randn(tokens, HIDDEN, dtype=dtype, device=device)
        top_k_softmax(_randn(tokens, EXPERTS, dtype=dtype, device=device), TOP_K, renormalize=True)
        logits, bias = (_randn(*shape, dtype=dtype, device=device) for shape in ((tokens, 4 * EXPERTS), (4 * EXPERTS,)))
        sigmoid_top_k(logits, TOP_K, bias, scaling_factor=2.5, groups=4, kept=2)
        ids, weights = _routes(tokens, device)
        everywhere = sort_by_expert(rows, ids, EXPERTS, 0, EXPERTS)
        weighted_sum(everywhere.rows, everywhere, weights, all_local=True)
        half = sort_by_expert(rows, ids, EXPERTS, 0, EXPERTS // 2)
        weighted_sum(half.rows.clone(), half, weights, all_local=False)
        int8 = quantize_rows(rows)
        sort_by_expert(int8[0], ids, EXPERTS, 0, EXPERTS, scales=int8[1])
        sum_present(rows.repeat_interleave(TOP_K, 0), everywhere.positions, weights.to(dtype))


def _counts(rows: int, device: torch.device) -> torch.Tensor:
    counts = torch.bincount(torch.randint(EXPERTS, (rows,)), minlength=EXPERTS)
    return counts.to(torch.int64).to(device)


def float_experts(device: torch.device, dtype: torch.dtype) -> None:
    """Without biases, and with them and the activation of gpt-oss."""
    w13 = _randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=dtype, device=device) * HIDDEN**-0.5
    w2 = _randn(EXPERTS, HIDDEN, INTERMEDIATE, dtype=dtype, device=device) * INTERMEDIATE**-0.5
    w13_bias, w2_bias = (_randn(*weight.shape[:2], dtype=dtype, device=device) for weight in (w13, w2))
    plain = ExpertWeights.from_loaded(w13, w2, activation="silu")
    clipped = ExpertWeights.from_loaded(w13, w2, activation="swigluoai", w13_bias=w13_bias, w2_bias=w2_bias)
    for weights in (plain, clipped):
        for tokens in TOKENS:
            expert_mlp(_randn(tokens, HIDDEN, dtype=dtype, device=device), _counts(tokens, device), weights)


def int8_experts(device: torch.device, dtype: torch.dtype) -> None:
    """SwiGLU and quantisation with the dequantisation, apart for sizes that this does not take, and with the product."""
    for intermediate in (INTERMEDIATE, ODD_INTERMEDIATE):
        w13 = torch.randint(-127, 128, (EXPERTS, 2 * intermediate, HIDDEN), dtype=torch.int8).to(device)
        w2 = torch.randint(-127, 128, (EXPERTS, HIDDEN, intermediate), dtype=torch.int8).to(device)
        scales = [(torch.rand(EXPERTS, w.shape[1]) * 1e-3 + 1e-4).to(device) for w in (w13, w2)]
        weights = ExpertWeights.from_loaded(
            w13, w2, activation="silu", w13_scale=scales[0], w2_scale=scales[1], output_dtype=dtype
        )
        ways = [weights, weights.in_fractal_nz()] if intermediate == INTERMEDIATE else [weights]
        for tokens in TOKENS:
            rows, row_scales = quantize_rows(_randn(tokens, HIDDEN, dtype=dtype, device=device))
            for way in ways:
                expert_mlp(rows, _counts(tokens, device), way, row_scales)


def int8_linear(device: torch.device, dtype: torch.dtype) -> None:
    """As ``npu/int8_linear.py``, whose class needs vLLM."""
    weight = torch.randint(-127, 128, (3 * 1024, HIDDEN), dtype=torch.int8).to(device)
    scale = (torch.rand(weight.shape[0]) * 1e-3 + 1e-4).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    for tokens in TOKENS:
        rows, row_scale = torch_npu.npu_dynamic_quant(_randn(tokens, HIDDEN, dtype=dtype, device=device))
        torch_npu.npu_quant_matmul(rows, weight.t(), scale.to(device), pertoken_scale=row_scale, output_dtype=dtype)
    static = as_bits(scale) if dtype == torch.float16 else scale.float()
    bias = torch.randint(-1000, 1000, (weight.shape[0],), dtype=torch.int32).to(device)
    step, offset = torch.tensor([0.02]).to(device), torch.tensor([3], dtype=torch.int32).to(device)
    for tokens in TOKENS:
        rows = torch_npu.npu_quantize(
            _randn(tokens, HIDDEN, dtype=dtype, device=device).float(), step, offset, torch.qint8, -1, True
        )
        torch_npu.npu_quant_matmul(rows, weight.t(), static.to(device), bias=bias, output_dtype=dtype)


def int4_weights(device: torch.device, dtype: torch.dtype) -> None:
    """Experts and, as ``npu/int4_linear.py`` has them, linear layers; scales in groups and per channel."""
    for groups in (HIDDEN // GROUP, 1):
        w13, w2 = (
            torch.randint(-(2**31), 2**31, (EXPERTS, outputs, inputs // PER_WORD), dtype=torch.int32).to(device)
            for outputs, inputs in ((2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
        )
        shares = groups, max(groups * INTERMEDIATE // HIDDEN, 1)
        scales = [
            group_scales(torch.empty(EXPERTS, w.shape[1], share, dtype=dtype, device=device)) * 1e-2
            for w, share in zip((w13, w2), shares, strict=True)
        ]
        weights = ExpertWeights.of_int4(w13, w2, *scales)
        for tokens in TOKENS:
            x = _randn(tokens, HIDDEN, dtype=dtype, device=device)
            expert_mlp(x, _counts(tokens, device), weights)
            torch_npu.npu_weight_quant_batchmatmul(
                x, w13[0].t(), scales[0][0].t(), antiquant_group_size=GROUP if groups > 1 else 0
            )


def _mask(device: torch.device) -> torch.Tensor:
    return torch.triu(torch.ones(2048, 2048, dtype=torch.int8), diagonal=1).to(device)


def _cache_mode() -> dict[str, str]:
    schema = torch.ops.npu.npu_scatter_pa_kv_cache.default._schema
    return {"cache_mode": "Norm"} if any(a.name == "cache_mode" for a in schema.arguments) else {}


def paged_attention(device: torch.device, dtype: torch.dtype) -> None:
    """Write pages, then attend: head size 128 in one call for all requests, 64 in one per kind of request."""
    for size, heads, kv_heads in ((128, 32, 4), (64, 8, 2)):
        caches = [_randn(BLOCKS, BLOCK, kv_heads, size, dtype=dtype, device=device) for _ in range(2)]
        rows = [_randn(9, kv_heads, size, dtype=dtype, device=device) for _ in range(2)]
        slots = torch.tensor([0, 1, 2, 130, 131, 260, 300, 400, 511], dtype=torch.int32).to(device)
        torch_npu.npu_scatter_pa_kv_cache(*rows, *caches, slots, **_cache_mode())
        pages = [cache.view(BLOCKS, BLOCK, -1) for cache in caches]
        table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32).to(device)
        causal: dict[str, Any] = {"sparse_mode": 3, "atten_mask": _mask(device)}

        def attend(
            query: torch.Tensor,
            layout: str,
            table: torch.Tensor,
            lengths: list[int],
            *,
            heads: int = heads,
            kv_heads: int = kv_heads,
            pages: list[torch.Tensor] = pages,
            **more: Any,
        ) -> None:
            torch_npu.npu_fused_infer_attention_score(
                query,
                *pages,
                num_heads=heads,
                num_key_value_heads=kv_heads,
                scale=query.shape[-1] ** -0.5,
                input_layout=layout,
                actual_seq_lengths_kv=lengths,
                block_table=table,
                block_size=BLOCK,
                **more,
            )

        if size == 128:
            query = _randn(8, heads, size, dtype=dtype, device=device)
            attend(query, "TND", table, [200, 40], actual_seq_lengths=[1, 8], **causal)
        else:
            attend(_randn(2, 1, heads, size, dtype=dtype, device=device), "BSND", table, [200, 40])
            attend(_randn(1, 7, heads, size, dtype=dtype, device=device), "BSND", table[:1], [200], **causal)


def attention_with_sinks(device: torch.device, dtype: torch.dtype) -> None:
    """Windows of 40 tokens and sinks, which the operator takes in bfloat16."""
    if dtype != torch.bfloat16:
        return
    heads, kv_heads, size = 8, 2, 64
    pages = [_randn(BLOCKS, BLOCK, kv_heads * size, dtype=dtype, device=device) for _ in range(2)]
    torch_npu.npu_fused_infer_attention_score_v2(
        _randn(8, heads, size, dtype=dtype, device=device),
        *pages,
        num_query_heads=heads,
        num_key_value_heads=kv_heads,
        softmax_scale=size**-0.5,
        input_layout="TND",
        actual_seq_qlen=[1, 8],
        actual_seq_kvlen=[200, 40],
        block_table=torch.tensor([[0, 1], [2, 3]], dtype=torch.int32).to(device),
        block_size=BLOCK,
        learnable_sink=_randn(heads, dtype=dtype, device=device),
        sparse_mode=4,
        pre_tokens=39,
        next_tokens=0,
        atten_mask=_mask(device),
    )


def latent_attention(device: torch.device, dtype: torch.dtype) -> None:
    """Multi-head latent attention: pages of 512 + 64 elements, absorbed decoding, prefill over gathered context."""
    heads, scale = 16, 192**-0.5
    latents, ropes = (_randn(BLOCKS, BLOCK, 1, width, dtype=dtype, device=device) for width in (512, 64))
    slots = torch.tensor([0, 5, 129], dtype=torch.int32).to(device)
    rows = [_randn(3, 1, width, dtype=dtype, device=device) for width in (512, 64)]
    torch_npu.npu_scatter_pa_kv_cache(*rows, latents, ropes, slots, **_cache_mode())
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32).to(device)
    pages = latents.transpose(1, 2)
    torch_npu.npu_fused_infer_attention_score(
        _randn(2, 1, heads, 512, dtype=dtype, device=device),
        pages,
        pages,
        query_rope=_randn(2, 1, heads, 64, dtype=dtype, device=device),
        key_rope=ropes.transpose(1, 2),
        num_heads=heads,
        num_key_value_heads=1,
        scale=scale,
        input_layout="BSND",
        actual_seq_lengths_kv=[200, 40],
        block_table=table,
        block_size=BLOCK,
    )
    context = [_randn(100, 1, width, dtype=dtype, device=device) for width in (512, 64)]
    sums = torch.tensor([0, 70, 100], dtype=torch.int32).to(device)
    starts = torch.tensor([0, 0], dtype=torch.int32).to(device)
    torch_npu.npu_gather_pa_kv_cache(latents, ropes, table, sums, *context, seq_offset=starts, is_seq_lens_cumsum=True)
    query, key, value = (_randn(10, heads, width, dtype=dtype, device=device) for width in (192, 192, 128))
    out, lse = torch_npu.npu_fused_infer_attention_score(
        query,
        key,
        value,
        num_heads=heads,
        num_key_value_heads=heads,
        scale=scale,
        input_layout="TND",
        actual_seq_lengths=[4, 10],
        actual_seq_lengths_kv=[4, 10],
        softmax_lse_flag=True,
        sparse_mode=3,
        atten_mask=_mask(device),
    )
    parts = lse.squeeze(-1).flatten()
    torch_npu.npu_attention_update([parts, parts + 1.0], [out.flatten(0, 1), out.flatten(0, 1) * 0.5], 1)


CALLS: tuple[Callable[[torch.device, torch.dtype], None], ...] = (
    routing,
    float_experts,
    int8_experts,
    int8_linear,
    int4_weights,
    paged_attention,
    attention_with_sinks,
    latent_attention,
)
