# SPDX-License-Identifier: Apache-2.0
"""Prefill of latent attention over context needs the memory of one chunk however many there are, and memory profiling has
taken as much; its values are those of attention to everything at once. The product's own class and operators, no engine."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_npu

from tests.support.installed import needs_latent_attention
from vllm_ascend_patch.npu.attention.mla.layout import split_cache
from vllm_ascend_patch.seams.port.latent_attention import forward_impl

BLOCK, HEADS, NOPE, ROPE, VALUE, RANK = 128, 16, 128, 64, 128, 512


def peak_of(call: Any) -> int:
    """Bytes that ``call`` takes at most, beyond what was there before."""
    before = torch_npu.npu.memory_allocated()
    torch_npu.npu.reset_peak_memory_stats()
    call()
    return torch_npu.npu.max_memory_allocated() - before


def attention(
    q: torch.Tensor, cache: torch.Tensor, latents: torch.Tensor, ropes: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """New tokens over the whole cache and, causally, each other, in float64: ``[T, heads, value size]``."""
    q, new, new_ropes, weight = (part.cpu().double() for part in (q, latents, ropes, weight))
    old, old_ropes = (part.cpu().double().flatten(0, 2) for part in split_cache(cache))
    parts = torch.cat([old, new]) @ weight
    nope, values = parts.view(-1, HEADS, NOPE + VALUE).split([NOPE, VALUE], dim=-1)
    rotary = torch.cat([old_ropes, new_ropes.squeeze(1)]).unsqueeze(1).expand(-1, HEADS, -1)
    scores = torch.einsum("qhd,khd->hqk", q, torch.cat([nope, rotary], dim=-1)) * (NOPE + ROPE) ** -0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(old) + 1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


@pytest.mark.slow  # what it imports of vLLM takes longer than what it does
@needs_latent_attention
@pytest.mark.parametrize(("rows", "tokens"), [(1024, 64), (256, 1024)], ids=["large chunks", "a large step"])
def test_several_chunks_take_the_memory_of_one_which_profiling_has_seen(rows: int, tokens: int) -> None:
    """``rows`` of the workspace; new ``tokens`` of the step's one request."""
    from vllm_ascend_patch.npu.attention.mla.backend import NPUMLAImpl
    from vllm_ascend_patch.npu.attention.mla.prefill import NPUMLAPrefillBackend

    torch.manual_seed(0)
    weight = (torch.randn(RANK, HEADS * (NOPE + VALUE)) * RANK**-0.5).half().to("npu")
    impl = object.__new__(NPUMLAImpl)
    impl.__dict__.update(num_heads=HEADS, qk_nope_head_dim=NOPE, v_head_dim=VALUE, _use_flashinfer_concat_mla_k=False)
    impl.__dict__.update(kv_b_proj=lambda x: (x @ weight, None))
    backend = object.__new__(NPUMLAPrefillBackend)
    backend.__dict__.update(num_heads=HEADS, scale=(NOPE + ROPE) ** -0.5, query_lens=[tokens])
    cache = torch.randn(4 * rows // BLOCK, BLOCK, RANK + ROPE).half().to("npu")
    q, latents, ropes = (
        torch.randn(tokens, *shape).half().to("npu") for shape in ((HEADS, NOPE + ROPE), (RANK,), (1, ROPE))
    )

    def prefill_over(lens: list[int]) -> torch.Tensor:
        """The request's new tokens over as much context, in as many chunks as there are ``lens``."""
        workspace = torch.zeros(max(lens), RANK + ROPE, dtype=torch.float16, device="npu")
        chunks = [
            SimpleNamespace(
                request_slice=slice(0, 1),
                token_slice=slice(0, tokens),
                num_context_tokens=length,
                starts=torch.tensor([start], dtype=torch.int32).to("npu"),
                cu_seq_lens=torch.tensor([0, length], dtype=torch.int32).to("npu"),
                seq_lens=torch.tensor([length]),
            )
            for start, length in zip([0, *accumulate(lens)], lens, strict=False)
        ]
        prefill = SimpleNamespace(
            chunked_context=SimpleNamespace(chunks=chunks, workspace=workspace),
            prefill_backend=backend,
            block_table=torch.arange(len(cache), dtype=torch.int32).unsqueeze(0).to("npu"),
        )
        output = torch.empty(tokens, HEADS * VALUE, dtype=torch.float16, device="npu")
        step: Any = SimpleNamespace(prefill=prefill)
        impl.forward_mha(q, latents, ropes, cache, step, weight, output)
        return output

    expected = attention(q, cache, latents, ropes, weight)
    for lens in ([4 * rows], [rows] * 4):
        found = prefill_over(lens).cpu().double().view_as(expected)
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    one, four = peak_of(lambda: prefill_over([rows])), peak_of(lambda: prefill_over([rows] * 4))
    layer = SimpleNamespace(
        qk_head_dim=NOPE + ROPE,
        qk_nope_head_dim=NOPE,
        v_head_dim=VALUE,
        head_size=RANK + ROPE,
        num_heads=HEADS,
        chunked_prefill_workspace_size=rows,
    )

    def upstream(layer: Any, output: torch.Tensor, attn_metadata: Any) -> torch.Tensor:
        return output

    def profile() -> None:
        output = torch.empty(tokens, HEADS * VALUE, dtype=torch.float16, device="npu")
        forward_impl(upstream, layer, output=output, attn_metadata=None)

    profiled = peak_of(profile)
    small = 256 * 1024  # lengths, sums of one float per token and head, the allocator's rounding
    assert max(rows, tokens) * HEADS * (NOPE + VALUE) * 2 < one <= four <= one + small
    assert four <= profiled + small
