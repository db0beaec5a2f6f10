# SPDX-License-Identifier: Apache-2.0
"""Prefill of latent attention over context in several chunks, against attention over everything at once in float64.

An engine's workspace holds eight of its longest requests, so tiny engines never come to a second chunk; here it is small.
"""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.installed import needs_latent_attention

BLOCK, HEADS, NOPE, ROPE, VALUE, RANK = 128, 4, 128, 64, 128, 512
SCALE = (NOPE + ROPE) ** -0.5


def reference(q: torch.Tensor, latents: torch.Tensor, ropes: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """One request: its last ``len(q)`` tokens against all of its tokens, causal; ``[T, heads, value size]``."""
    nope, values = (latents @ up).view(-1, HEADS, NOPE + VALUE).split([NOPE, VALUE], dim=-1)
    keys = torch.cat([nope, ropes.unsqueeze(1).expand(-1, HEADS, -1)], dim=-1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * SCALE
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(scores.shape[2] - scores.shape[1] + 1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


@pytest.mark.slow  # what it imports of vLLM takes longer than what it does
@needs_latent_attention
@pytest.mark.parametrize("rows", [512, 2048])
def test_context_in_chunks_is_attended_to_as_a_whole(rows: int) -> None:
    """Requests with context of one token, of more than a chunk, and without any."""
    from vllm_ascend_patch.npu.attention.mla.backend import NPUMLAImpl, _keep_sizes
    from vllm_ascend_patch.npu.attention.mla.chunks import chunked_context
    from vllm_ascend_patch.npu.attention.mla.layout import split_cache
    from vllm_ascend_patch.npu.attention.mla.prefill import NPUMLAPrefillBackend

    torch.manual_seed(0)
    context_lens, query_lens = [1, 700, 0, 300], [5, 2, 4, 8]
    ends = list(accumulate(query_lens))
    latents, ropes = torch.randn(sum(context_lens) + ends[-1], RANK), torch.randn(sum(context_lens) + ends[-1], ROPE)
    latents, ropes = latents.half(), ropes.half()
    up = (torch.randn(RANK, HEADS * (NOPE + VALUE)) * RANK**-0.5).half()
    q = torch.randn(ends[-1], HEADS, NOPE + ROPE).half()

    cache = torch.zeros(16, BLOCK, RANK + ROPE, dtype=torch.float16, device="npu")
    cached_latents, cached_ropes = split_cache(cache)
    table = torch.tensor([[9, 0, 0, 0, 0, 0], [3, 8, 1, 7, 2, 5], [0, 0, 0, 0, 0, 0], [4, 6, 10, 0, 0, 0]])
    expected, new_latents, new_ropes, start = [], [], [], 0
    for request, (context, new) in enumerate(zip(context_lens, query_lens, strict=True)):
        whole = slice(start, start + context + new)
        for token in range(context):
            block, offset = int(table[request, token // BLOCK]), token % BLOCK
            cached_latents[block, offset, 0] = latents[start + token].to("npu")
            cached_ropes[block, offset, 0] = ropes[start + token].to("npu")
        new_latents.append(latents[start + context : start + context + new])
        new_ropes.append(ropes[start + context : start + context + new])
        mine = q[ends[request] - new : ends[request]].double()
        expected.append(reference(mine, latents[whole].double(), ropes[whole].double(), up.double()))
        start += context + new

    weight = up.to("npu")
    impl = object.__new__(NPUMLAImpl)
    sizes = {"num_heads": HEADS, "qk_nope_head_dim": NOPE, "v_head_dim": VALUE, "scale": SCALE}
    _keep_sizes(impl, **sizes, kv_b_proj=lambda x: (x @ weight, None))
    backend = object.__new__(NPUMLAPrefillBackend)
    backend.num_heads, backend.scale, backend.query_lens = HEADS, SCALE, query_lens
    workspace = torch.zeros(rows, RANK + ROPE, dtype=torch.float16, device="npu")
    prefill = SimpleNamespace(
        chunked_context=chunked_context(context_lens, ends, workspace, BLOCK),
        prefill_backend=backend,
        block_table=table.to(torch.int32).to("npu"),
    )
    assert (len(prefill.chunked_context.chunks) > 2) == (rows == 512)
    output = torch.empty(ends[-1], HEADS * VALUE, dtype=torch.float16, device="npu")
    step: Any = SimpleNamespace(prefill=prefill)
    impl.forward_mha(
        q.to("npu"),
        torch.cat(new_latents).to("npu"),
        torch.cat(new_ropes).unsqueeze(1).to("npu"),
        cache,
        step,
        torch.ones(1),
        output,
    )
    found = output.cpu().double().view(-1, HEADS, VALUE)
    torch.testing.assert_close(found, torch.cat(expected), rtol=5e-3, atol=5e-3)
