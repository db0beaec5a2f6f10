# SPDX-License-Identifier: Apache-2.0
"""The rules of ``npu_fused_infer_attention_score`` with ``query_rope`` and ``key_rope``: absorbed latent attention (MLA).

Queries of 512 + 64 elements per head over two paged caches, which all heads share. Numbers come from op-plugin's page and
from CANN's host code of A2 and A3; where an older CANN (8.x) takes less, the smaller limit is enforced. The other form, head
size 128 with rope, is not modelled: its inputs can be concatenated to 192.
"""

from __future__ import annotations

import torch

from .fused_infer_rules import (
    Call,
    check_batched,
    check_compressed_mask,
    check_pages,
    check_table,
    check_tnd,
    requests,
)
from .limits import require, require_contiguous, require_dim, require_dtype, require_shape, unsupported

LATENT = 512
ROPE = 64
HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_QUERIES = 16  # per request; CANN 8.x


def check_latent(call: Call) -> None:
    """Raise for the first documented limit that a call with rope inputs breaks."""
    op, query, key, value = call.op, call.query, call.key, call.value
    query_rope, key_rope = call.query_rope, call.key_rope
    if query_rope is None or key_rope is None:
        missing = "query_rope" if query_rope is None else "key_rope"
        raise RuntimeError(f"{op}: query_rope and key_rope go together, got no {missing}")
    if query.dtype == torch.int8:
        raise unsupported(op, "int8 queries with rope inputs")
    if call.input_layout not in ("BSND", "TND"):
        raise unsupported(op, f"layout {call.input_layout} with rope inputs")
    require_dtype(op, "query", query, (torch.float16, torch.bfloat16))
    named = {"key": key, "value": value, "query_rope": query_rope, "key_rope": key_rope}
    for name, tensor in named.items():
        require(op, tensor.dtype == query.dtype, f"{name} must have the dtype of query", tensor.dtype)
    require_contiguous(op, query=query, **named, atten_mask=call.atten_mask)
    require_dim(op, f"query in layout {call.layout}", query, 3 if call.layout == "TND" else 4)
    if query.shape[-1] == 128:
        raise unsupported(op, "head size 128 with rope inputs")
    require(op, query.shape[-1] == LATENT, f"with rope inputs the head size must be {LATENT}", query.shape[-1])
    require_shape(op, "query_rope", query_rope, (*query.shape[:-1], ROPE))
    require(op, query.shape[-2] == call.heads, "the number of heads must be that of the query's shape", call.heads)
    require(op, call.heads in HEADS, f"with rope inputs the heads must be one of {HEADS}", call.heads)
    require(op, call.kv_heads == 1, "with rope inputs there must be one key/value head", call.kv_heads)
    require(op, call.inner_precise in (0, 1), "inner_precise must be 0 or 1 with rope inputs", call.inner_precise)
    require(op, not call.return_lse, "the log-sum-exp is not supported with head size 512", call.return_lse)
    if call.block_table is None:
        raise unsupported(op, "rope inputs without block_table")
    if call.layout == "TND" and not (call.q_lengths and call.kv_lengths):
        both = f"{call.q_lengths} and {call.kv_lengths}"
        raise RuntimeError(f"{op}: TND needs the query and the key/value lengths, got {both}")
    _check_caches(call, key_rope)
    if call.layout == "TND":
        check_tnd(call)
    else:
        check_batched(call)
    _check_queries(call)


def _check_caches(call: Call, key_rope: torch.Tensor) -> None:
    op, key = call.op, call.key
    check_table(call)
    require_dim(op, "a paged key", key, 3, 4)
    block = key.shape[-2]
    lead = (key.shape[0], block) if key.dim() == 3 else (key.shape[0], 1, block)
    for name, cache, width in (("key", key, LATENT), ("value", call.value, LATENT), ("key_rope", key_rope, ROPE)):
        require_shape(op, name, cache, (*lead, width))
    require(op, 0 < block <= 1024 and block % 16 == 0, "block_size must be a multiple of 16 up to 1024", block)
    check_pages(call, block)


def _check_queries(call: Call) -> None:
    op, mode = call.op, call.sparse_mode
    longest = max((request.queries for request in requests(call)), default=0)
    require(op, longest <= MAX_QUERIES, f"with rope inputs at most {MAX_QUERIES} queries per request", longest)
    if mode in (4, 9):
        raise unsupported(op, f"sparse_mode {mode} with rope inputs")
    if mode == 3:
        check_compressed_mask(call)
        return
    require(op, mode == 0, "sparse_mode must be 0, or 3 for several queries per request, with rope inputs", mode)
    require(op, call.atten_mask is None, "sparse_mode 0 takes no atten_mask with rope inputs", "one")
    require(op, longest <= 1, "several queries per request need sparse_mode 3 with rope inputs", longest)
