# SPDX-License-Identifier: Apache-2.0
"""Absorbed decoding for numbers of heads that the operator does not take, against a float64 formula. No engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_npu  # noqa: F401

from tests.support.installed import needs_latent_attention

BLOCK, RANK, ROPE = 128, 512, 64
SCALE = 192**-0.5
LENS = [1, 130, 300]


@pytest.mark.slow  # what it imports of vLLM takes longer than what it does
@needs_latent_attention
@pytest.mark.parametrize("queries", [1, 3], ids=["one query token", "with drafts"])
@pytest.mark.parametrize("heads", [4, 10, 20, 128], ids=lambda heads: f"{heads} heads")
def test_decoding_with_any_number_of_heads(heads: int, queries: int) -> None:
    """GLM-4.7-Flash has 20 heads, 10 per rank at TP 2: calls of 32 and of 16, whose added heads nobody sees."""
    from vllm_ascend_patch.npu.attention.mla.backend import NPUMLAImpl
    from vllm_ascend_patch.npu.attention.mla.layout import split_cache
    from vllm_ascend_patch.npu.attention.mla.metadata import NPUMLADecodeMetadata

    torch.manual_seed(heads)
    cache = torch.randn(8, BLOCK, RANK + ROPE).half()
    table = torch.tensor([[5, 0, 0], [2, 7, 0], [6, 1, 3]], dtype=torch.int32)
    lens = [length + queries - 1 for length in LENS]
    nope, rope = (
        torch.randn(len(LENS) * queries, heads, RANK).half(),
        torch.randn(len(LENS) * queries, heads, ROPE).half(),
    )
    decode = NPUMLADecodeMetadata(
        block_table=table.to("npu"),
        seq_lens=torch.tensor(lens).to("npu"),
        dcp_tot_seq_lens=None,
        query_ends=[queries * (request + 1) for request in range(len(LENS))],
        context_lens=lens,
    )
    impl = object.__new__(NPUMLAImpl)
    impl.__dict__.update(scale=SCALE / RANK**0.5)
    step: Any = SimpleNamespace(decode=decode, tasks=None)
    found, _ = impl.forward_mqa((nope.to("npu"), rope.to("npu")), cache.to("npu"), step, None)
    assert found.shape == nope.shape

    latents, ropes = (part.squeeze(2).double() for part in split_cache(cache))
    for request, length in enumerate(lens):
        keys, key_ropes = (part[table[request].long()].flatten(0, 1)[:length] for part in (latents, ropes))
        for query in range(queries):
            row = request * queries + query
            seen = length - queries + 1 + query
            scores = nope[row].double() @ keys[:seen].t() + rope[row].double() @ key_ropes[:seen].t()
            expected = (scores * SCALE / RANK**0.5).softmax(-1) @ keys[:seen]
            torch.testing.assert_close(found[row].cpu().double(), expected, rtol=5e-3, atol=5e-3)
