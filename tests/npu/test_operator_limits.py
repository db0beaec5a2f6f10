# SPDX-License-Identifier: Apache-2.0
"""What is not refused up front breaks no limit of the strict kernels; what is refused says what to do.

The kernels' own rules are the judge: their checks are run on tensors of the sizes that a deployment makes, which have no
memory behind them (device ``meta``) where the sizes do not allow it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, MLAAttentionSpec

import vllm_ascend_patch
from vllm_ascend_patch.core.latent_support import MAX_QUERIES, padded_heads
from vllm_ascend_patch.core.operator_limits import (
    ROWS,
    Deployment,
    most_blocks,
    most_requests_of_a_call,
    violations,
)
from vllm_ascend_patch.npu.attention.layout import BLOCK_SIZE, QueryLayout, check_head_size, query_layout
from vllm_ascend_patch.npu.kv_limit import block_bytes, capped
from vllm_ascend_patch.virtual_npu.kernels import (
    fused_infer_latent_rules,
    fused_infer_rules,
    gating,
    grouped_matmul,
    grouped_rows,
    init_routing,
    permute,
    quant_matmul,
)

# Qwen3-235B-A22B at TP 4, as it is served by default.
COMMON = Deployment(
    heads=16,
    kv_heads=1,
    head_size=128,
    block_size=128,
    kernel_block=128,
    max_model_len=40960,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
    experts=128,
    local_experts=32,
    hidden_size=4096,
    intermediate_size=1536,
    top_k=8,
)

LATENT: dict[str, Any] = {"latent": True, "heads": 16, "kv_heads": 1, "head_size": 576}


def refusals(deployment: Deployment) -> list[str]:
    """As the front door has them: heads first, then sizes."""
    try:
        if not deployment.latent:  # whose heads are padded to a count that the operator takes
            check_head_size(deployment.head_size, deployment.heads, deployment.kv_heads)
    except ValueError as error:
        return [str(error)]
    return list(violations(deployment))


def attention_call(deployment: Deployment, *, decode: bool) -> fused_infer_rules.Call:
    """The largest call of a step: every request decodes, or one has all the tokens (BSND: a call of its own)."""
    tnd = query_layout(deployment.head_size) is QueryLayout.TND
    chunk = deployment.attention_chunk
    longest = min(deployment.max_model_len or 1, chunk or 1 << 62)
    requests = most_requests_of_a_call(deployment)
    if not decode and not tnd:
        requests = 1
    queries = 1 if decode else max(1, min(deployment.max_num_batched_tokens // requests, longest))
    blocks = most_blocks(deployment.key_elements) if deployment.num_blocks is None else deployment.num_blocks
    per_block = deployment.block_size // deployment.kernel_block
    views = 2 * blocks * per_block - 1  # see layout.split_pages
    pages = (views, deployment.kernel_block, deployment.kv_heads * deployment.head_size)
    key, value = (torch.empty(pages, dtype=torch.bfloat16, device="meta") for _ in range(2))
    shape = (requests * queries,) if tnd else (requests, queries)
    query = torch.empty(*shape, deployment.heads, deployment.head_size, dtype=torch.bfloat16, device="meta")
    columns = -(-longest // deployment.kernel_block)
    masked = not (decode and not tnd)
    return fused_infer_rules.Call(
        op="attention",
        query=query,
        key=key,
        value=value,
        layout="TND" if tnd else "BSND",
        out_layout="TND" if tnd else "BSND",
        input_layout="TND" if tnd else "BSND",
        heads=deployment.heads,
        kv_heads=deployment.kv_heads,
        scale=1.0,
        atten_mask=fused_infer_rules.causal_mask() if masked else None,
        q_lengths=[queries * (index + 1) for index in range(requests)] if tnd else None,
        kv_lengths=[longest, *[queries] * (requests - 1)],
        block_table=torch.full((1, 1), views - 1, dtype=torch.int32).expand(requests, columns),
        block_size=deployment.kernel_block,
        sparse_mode=3 if masked else 0,
        pre_tokens=1 << 31,
        next_tokens=1 << 31,
        inner_precise=0,
        return_lse=False,
        sink=None,
    )


def latent_decode(deployment: Deployment, queries: int) -> fused_infer_rules.Call:
    """The largest decode of a step, as ``NPUMLAImpl.forward_mqa`` has it: ``queries`` tokens per request."""
    requests = most_requests_of_a_call(deployment) // queries
    blocks = most_blocks(deployment.key_elements) if deployment.num_blocks is None else deployment.num_blocks
    lead = (requests * queries,) if queries > 1 else (requests, 1)
    heads, longest = padded_heads(deployment.heads), max(deployment.max_model_len or 1, queries)
    query, rope = (torch.empty(*lead, heads, size, dtype=torch.bfloat16, device="meta") for size in (512, 64))
    latents, ropes = (
        torch.empty(blocks, 1, deployment.kernel_block, size, dtype=torch.bfloat16, device="meta") for size in (512, 64)
    )
    return attention(
        query,
        latents,
        latents,
        kv_heads=1,
        q_lengths=[queries * (index + 1) for index in range(requests)] if queries > 1 else None,
        kv_lengths=[longest, *[queries] * (requests - 1)],
        block_table=torch.full((1, 1), blocks - 1, dtype=torch.int32).expand(requests, -(-longest // 128)),
        block_size=deployment.kernel_block,
        causal=queries > 1,
        query_rope=rope,
        key_rope=ropes,
    )


def latent_prefill(deployment: Deployment) -> fused_infer_rules.Call:
    """The prefill of as many requests as a step can have, as ``NPUMLAPrefillBackend`` has it."""
    requests = most_requests_of_a_call(deployment)
    tokens = deployment.max_num_batched_tokens
    query, key, value = (
        torch.empty(tokens, deployment.heads, size, dtype=torch.bfloat16, device="meta") for size in (192, 192, 128)
    )
    ends = [*range(1, requests), tokens]
    return attention(query, key, value, kv_heads=deployment.heads, q_lengths=ends, kv_lengths=ends, causal=True)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, **arguments: Any
) -> fused_infer_rules.Call:
    layout = "TND" if query.dim() == 3 else "BSND"
    return fused_infer_rules.Call(
        op="attention",
        query=query,
        key=key,
        value=value,
        layout=layout,
        out_layout=layout,
        input_layout=layout,
        heads=query.shape[-2],
        scale=1.0,
        atten_mask=fused_infer_rules.causal_mask() if causal else None,
        sparse_mode=3 if causal else 0,
        pre_tokens=1 << 31,
        next_tokens=1 << 31,
        inner_precise=0,
        return_lse=False,
        sink=None,
        **{"block_table": None, "block_size": 0, **arguments},
    )


def run_experts(deployment: Deployment) -> None:
    """The operators around one token, and the checks of the grouped matmul on weights of full size."""
    if not deployment.experts:
        return
    ids = torch.arange(deployment.top_k, dtype=torch.int32).unsqueeze(0)
    gating.moe_gating_top_k_softmax(torch.zeros(1, deployment.experts), None, deployment.top_k)
    rows, positions, *_ = init_routing.moe_init_routing_v2(
        torch.zeros(1, deployment.hidden_size, dtype=torch.bfloat16),
        ids,
        active_num=deployment.top_k,
        expert_num=deployment.experts,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        quant_mode=-1,
        active_expert_range=[0, deployment.experts],
    )
    permute.moe_token_unpermute(rows, positions, torch.ones(1, deployment.top_k))
    for inner, width in (
        (deployment.hidden_size, 2 * deployment.intermediate_size),
        (deployment.intermediate_size, deployment.hidden_size),
    ):
        x = torch.empty(8, inner, dtype=torch.bfloat16, device="meta")
        weight = torch.empty(deployment.local_experts, width, inner, dtype=torch.bfloat16, device="meta")
        grouped_matmul._check_operands([x], [weight.transpose(1, 2)], None)
        assert deployment.local_experts <= grouped_rows.MAX_GROUPS


def run_linear(deployment: Deployment) -> None:
    for inner in deployment.int8_widths:
        for width in deployment.int8_widths:
            x1, x2 = (torch.empty(s, dtype=torch.int8, device="meta") for s in ((4, inner), (width, inner)))
            scale, per_token = (torch.empty(s, dtype=torch.float32, device="meta") for s in ((width,), (4,)))
            quant_matmul.quant_matmul(x1, x2.t(), scale, pertoken_scale=per_token, output_dtype=torch.bfloat16)


SIZES = st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64, 128, 512, 1024, 4096, 16384])


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    """Models of any shape on any TP and EP: most of them far outside what anybody serves."""
    tp = draw(st.sampled_from([1, 2, 4, 8, 16]))
    kv_heads = draw(st.sampled_from([1, 2, 4, 8, 16, 32, 96]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 7, 8, 16, 64, 65]))
    experts = draw(st.sampled_from([0, 8, 60, 128, 160, 512, 1024, 2048, 10240, 10241]))
    dp, distributed = draw(st.sampled_from([1, 2, 16, 64])), draw(st.booleans())
    block = BLOCK_SIZE * draw(st.sampled_from([1, 2, 4, 8]))
    intermediate = draw(st.integers(16, 40000)) * 2
    hidden = draw(st.sampled_from([64, 2048, 7168, 16384, 65535, 65536]))
    return Deployment(
        heads=max(1, heads // tp),
        kv_heads=max(1, kv_heads // tp),
        head_size=draw(st.sampled_from([16, 64, 80, 96, 128, 192, 256, 512, 528])),
        block_size=block,
        kernel_block=draw(st.sampled_from([BLOCK_SIZE, block])),
        max_model_len=draw(st.one_of(st.none(), st.integers(1, 1 << 24))),
        max_num_seqs=draw(SIZES) * draw(st.sampled_from([1, 3, 8])),
        max_num_batched_tokens=draw(SIZES) * 8,
        num_blocks=draw(st.one_of(st.none(), st.integers(2, 1 << 20))),
        attention_chunk=draw(st.sampled_from([None, None, 64, 128, 1024, 8192])),
        experts=experts,
        local_experts=-(-experts // (tp * dp)) if distributed else experts,
        hidden_size=hidden,
        intermediate_size=intermediate // (1 if distributed else tp),
        top_k=min(draw(st.sampled_from([1, 2, 8, 512, 513, 1024])), experts),
        int8_widths=(hidden, 2 * intermediate // tp) if draw(st.booleans()) else (),
    )


@settings(max_examples=60, deadline=None)
@given(deployments())
def test_what_is_not_refused_breaks_no_limit_of_the_kernels(deployment: Deployment) -> None:
    if refusals(deployment):
        return
    for decode in (True, False):
        fused_infer_rules.check(attention_call(deployment, decode=decode))
    run_experts(deployment)
    run_linear(deployment)


@settings(max_examples=30, deadline=None)
@given(
    heads=st.sampled_from([1, 5, 16, 20, 128]),
    max_num_seqs=SIZES,
    max_num_batched_tokens=SIZES,
    max_model_len=st.integers(1, 1 << 23),
    num_blocks=st.one_of(st.none(), st.integers(2, 1 << 16)),
    block=st.sampled_from([128, 256, 512]),
)
def test_what_is_not_refused_of_latent_attention_breaks_no_limit_of_the_kernels(block: int, **sizes: Any) -> None:
    deployment = replace(COMMON, **LATENT | sizes, block_size=block, kernel_block=block)
    if refusals(deployment):
        return
    fused_infer_latent_rules.check_latent(latent_decode(deployment, queries=1))
    if most_requests_of_a_call(deployment) >= MAX_QUERIES:
        fused_infer_latent_rules.check_latent(latent_decode(deployment, queries=MAX_QUERIES))
    fused_infer_rules.check(latent_prefill(deployment))


# One deployment for each refusal, a step inside its limit and a step outside; the words that tell what was found and what
# to do.
EDGES = [
    ({"kv_heads": 8, "max_model_len": 1048320}, {"kv_heads": 8, "max_model_len": 1048448},
     "--max-model-len 1048448 needs 8192 KV blocks.*at most 8191.*lower --max-model-len to 1048320"),
    ({"num_blocks": 65535}, {"num_blocks": 65536}, "--num-gpu-blocks-override 65536: at most 65535"),
    ({"max_num_seqs": 4096, "max_num_batched_tokens": 8192}, {"max_num_seqs": 4097, "max_num_batched_tokens": 8192},
     "--max-num-seqs 4097 lets attention meet 4097 requests"),
    ({"max_num_seqs": 4000, "max_num_batched_tokens": 4096, "attention_chunk": 128},
     {"max_num_seqs": 4000, "max_num_batched_tokens": 4097, "attention_chunk": 128},
     "meet 4097 requests in a step .each counts once per chunk of 128 tokens."),
    (LATENT | {"max_num_seqs": 4096, "max_num_batched_tokens": 8192},
     LATENT | {"max_num_seqs": 4097, "max_num_batched_tokens": 8192},
     "meet 4097 requests in a step, at most 4096 are supported on Ascend NPUs with multi-head latent attention"),
    (LATENT | {"num_blocks": 32767}, LATENT | {"num_blocks": 32768},
     "--num-gpu-blocks-override 32768: at most 32767.*the latents of a layer are at most 2147483647 elements"),
    (LATENT | {"max_model_len": 4194048}, LATENT | {"max_model_len": 4194049},
     "--max-model-len 4194049 needs 32768 KV blocks.*at most 32767.*: lower --max-model-len to 4194048"),
    ({"attention_chunk": 256}, {"attention_chunk": 64}, "chunks of 64 tokens; only chunks of whole KV blocks"),
    ({"block_size": 512, "kernel_block": 512}, {"block_size": 640, "kernel_block": 640}, "--block-size 640: at most 512"),
    ({"experts": 10240, "local_experts": 10}, {"experts": 10241, "local_experts": 11}, "10241 experts per layer"),
    ({"experts": 1024, "local_experts": 1024}, {"experts": 1025, "local_experts": 1025}, "1025 experts per rank"),
    ({"intermediate_size": 32767}, {"intermediate_size": 32768}, "intermediate size 32768 per rank"),
    ({"hidden_size": 65535}, {"hidden_size": 65536}, "hidden size 65536"),
    ({"experts": 600, "top_k": 512}, {"experts": 600, "top_k": 513}, "513 experts per token, at most 512"),
    ({"int8_widths": (65535,)}, {"int8_widths": (65536,)}, "an int8 linear layer has 65536 inputs or outputs"),
    ({"head_size": 256, "heads": 255, "kv_heads": 51}, {"head_size": 256, "heads": 256, "kv_heads": 64},
     "query heads x head size must be at most 65534"),
]  # fmt: skip


@pytest.mark.parametrize(("within", "beyond", "message"), EDGES, ids=lambda value: str(value)[:40])
def test_each_limit_is_refused_with_what_was_found_and_what_to_do(
    within: dict[str, Any], beyond: dict[str, Any], message: str
) -> None:
    fits, breaks = replace(COMMON, **within), replace(COMMON, **beyond)
    assert refusals(fits) == []
    (refusal,) = refusals(breaks)
    assert re.search(message, refusal), refusal


def test_a_layer_has_as_many_blocks_as_its_elements_fit_int32() -> None:
    page = 2 * 128 * 8 * 128  # keys and values, block, KV heads, head size
    assert most_blocks(page) == 8191
    assert most_blocks(page) * page < 2**31 <= (most_blocks(page) + 1) * page


def test_a_layer_of_latent_attention_has_as_many_blocks_as_its_latents_fit_int32() -> None:
    """512 elements a token: rotary parts are a tensor of their own, and there are no values beside the latents."""
    deployment = replace(COMMON, **LATENT)
    assert most_blocks(deployment.key_elements) == 32767
    assert 32767 * 128 * 512 < 2**31 == 32768 * 128 * 512


def test_a_cache_of_latents_is_capped_by_them_and_one_of_keys_and_values_by_both() -> None:
    """Upstream's own specifications of 16-bit layers; memory for more blocks than can be indexed."""
    plain = FullAttentionSpec(block_size=128, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
    latent = MLAAttentionSpec(block_size=128, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    for spec, blocks in ((plain, 8191), (latent, 32767)):
        specs = {"one": spec, "two": spec}
        block = 2 * spec.page_size_bytes
        assert capped(40000 * block, specs, block) == blocks * block
        assert capped(1000 * block, specs, block) == 1000 * block


def test_layers_with_states_share_their_blocks_with_layers_that_attend() -> None:
    """As in Qwen3-Next, three with states to one that attends: a block is one layer's page, whichever kind holds it."""
    from vllm.config import DeviceConfig, VllmConfig

    attends = FullAttentionSpec(block_size=128, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    page = 2 * 128 * 2 * 64 * 2
    assert attends.page_size_bytes == page
    keeps = MambaSpec(shapes=((64,),), dtypes=(torch.float32,), block_size=1024, page_size_padded=page)
    specs = {"0": keeps, "1": keeps, "2": keeps, "3": attends}
    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    config.cache_config.kv_cache_layout = "LBHNC"  # which the engine decides before workers look at memory
    assert block_bytes(config, specs) == page
    assert block_bytes(config, {"0": attends, "1": attends}) == 2 * page
    assert capped(70000 * page, specs, page) == 65535 * page  # int32 elements in the keys and values of the one layer


def test_every_operator_that_is_called_has_a_row_and_no_other() -> None:
    root = Path(vllm_ascend_patch.__file__).parent
    sources = [path for path in root.rglob("*.py") if "virtual_npu" not in path.parts]
    called = {name for path in sources for name in re.findall(r"torch_npu\.(npu_\w+)\(", path.read_text())}
    assert len(called) > 10
    assert {row.operator for row in ROWS} == called


@pytest.mark.parametrize(("hidden", "size", "served"), [(7168, 2048, True), (2048, 192, False), (18688, 256, False)])
def test_int4_experts_need_sizes_that_the_grouped_matmul_takes(hidden: int, size: int, served: bool) -> None:
    deployment = replace(COMMON, int4_experts=True, hidden_size=hidden, intermediate_size=size)
    found = [problem for problem in violations(deployment) if problem.startswith("int4 experts of hidden size")]
    assert len(found) == (not served)
    assert not served or not list(violations(deployment))
    assert all("multiples of 256 and at most 18432" in problem for problem in found)
