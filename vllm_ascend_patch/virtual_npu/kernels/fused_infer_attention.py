# SPDX-License-Identifier: Apache-2.0
"""``npu_fused_infer_attention_score`` (v1 and v2): layouts and the walk over requests.

The rules about arguments live in fused_infer_rules.py and fused_infer_latent_rules.py (rope inputs), the arithmetic in
attention_math.py, the ``.out`` forms in fused_infer_out.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .attention_math import NO_BAND, attend, band, gather_pages
from .fused_infer_latent_rules import check_latent
from .fused_infer_rules import Call, Request, check, check_sink, requests
from .limits import poison, require_absent


def _by_token(tensor: torch.Tensor, layout: str, heads: int) -> torch.Tensor:
    """Any dense layout as ``[B, S, N, D]`` (a view)."""
    if layout == "BSH":
        return tensor.unflatten(2, (heads, tensor.shape[2] // heads))
    return tensor.transpose(1, 2) if layout == "BNSD" else tensor


def _pages(cache: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Either paged layout as ``[blocks, block_size, kv_heads, D]`` (a view)."""
    if cache.dim() == 3:  # BnBsH
        return cache.unflatten(2, (kv_heads, cache.shape[2] // kv_heads))
    return cache.transpose(1, 2)  # BnNBsD


def _mask(call: Call, request: Request, queries: int, keys: int) -> torch.Tensor | None:
    """True where this request's queries must not look, ``[queries, keys]``, or None."""
    if call.single_query:
        if call.atten_mask is None or call.sparse_mode in (2, 3, 4):
            return None
        return call.atten_mask_of(request.index, queries, keys)
    if call.sparse_mode in (2, 3):
        return band(queries, keys, NO_BAND, 0, right_aligned=call.sparse_mode == 3)
    if call.sparse_mode == 4:
        return band(queries, keys, call.pre_tokens, call.next_tokens, right_aligned=True)
    if call.atten_mask is None:
        return None
    masked = call.atten_mask_of(request.index, queries, keys)
    if call.sparse_mode == 0:
        outside = band(queries, keys, call.pre_tokens, call.next_tokens, right_aligned=False)
        masked = masked if outside is None else masked | outside
    return masked


def _run(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Check, then attend request by request. Rows that belong to no request hold NaN."""
    if call.query_rope is None and call.key_rope is None:
        check(call)
    else:
        check_latent(call)
    tnd = call.layout == "TND"
    query = call.query if tnd else _by_token(call.query, call.layout, call.heads)
    if call.block_table is not None:
        key, value = _pages(call.key, call.kv_heads), _pages(call.value, call.kv_heads)
    elif tnd:
        key, value = call.key, call.value
    else:
        key, value = (_by_token(tensor, call.layout, call.kv_heads) for tensor in (call.key, call.value))
    if call.query_rope is not None and call.key_rope is not None:
        query = torch.cat((query, call.query_rope), -1)  # BSND or TND
        key = torch.cat((key, _pages(call.key_rope, 1)), -1)
    out = poison((*query.shape[:-1], value.shape[-1]), torch.float32)
    lse = poison(query.shape[:-1], torch.float32)
    for request in requests(call):
        if request.queries == 0:
            continue
        rows: tuple[int | slice, ...] = (slice(request.q_start, request.q_start + request.queries),)
        columns: tuple[int | slice, ...] = (slice(request.kv_start, request.kv_start + request.keys),)
        if not tnd:
            rows, columns = (request.index, *rows), (request.index, *columns)
        if call.block_table is not None:
            blocks = call.block_table[request.index, : -(-request.keys // key.shape[1])]
            k, v = (gather_pages(cache, blocks, request.keys) for cache in (key, value))
        else:
            k, v = key[columns], value[columns]
        masked = _mask(call, request, request.queries, request.keys)
        attended, sums = attend(query[rows], k, v, call.scale, masked, call.sink)
        if call.inner_precise & 2:  # bit 1: rows that see nothing become zero
            attended[sums == float("inf")] = 0.0
        out[rows], lse[rows] = attended, sums
    return _shaped(call, out, lse)


def _shaped(call: Call, out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Back to the layout and dtype that were asked for."""
    if call.layout == "BNSD" and call.out_layout == "BNSD":
        out = out.transpose(1, 2)
    elif call.layout == "BSH":
        out = out.flatten(2)
    if not call.return_lse:
        lse = lse.new_empty(0)
    elif call.layout == "TND":
        lse = lse.unsqueeze(-1)
    else:
        lse = lse.transpose(1, 2).unsqueeze(-1)
    return out.to(call.query.dtype).contiguous(), lse.contiguous()


def fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    atten_mask: torch.Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: torch.Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = NO_BAND,
    next_tokens: int = NO_BAND,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    **unmodelled: torch.Tensor | Sequence[int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention for prefill and decode over dense or paged keys and values.

    Args:
        query: TND ``[T, N, D]``, BSH ``[B, S, N * D]``, BSND or BNSD; fp16 or bf16, contiguous.
        key: dense in the query's layout, or with ``block_table`` ``[blocks, block_size, kv_heads * D]``, or
            ``[blocks, kv_heads, block_size, D]`` (TND and BNSD queries only).
        value: like key.
        atten_mask: sparse_mode 2 to 4: exactly 2048 x 2048, 1 above the diagonal; 0 and 1: the full mask.
        actual_seq_lengths: TND: cumulative, the last one is T. Otherwise lengths per request.
        actual_seq_lengths_kv: with ``block_table`` lengths per request; dense TND: cumulative.
        block_table: int32 ``[B, blocks per request]``.
        query_rope: latent attention (MLA): ``[T, N, 64]`` or ``[B, S, N, 64]`` beside a query of head size 512.
        key_rope: paged like key, which then has one head of 512 and is the value too; 64 elements per token.
        sparse_mode: 0 none or full mask, 1 full mask, 2 causal from the upper left, 3 causal from the lower right,
            4 band.

    Returns:
        attention output in the query's dtype (layout before or after the underscore of ``input_layout``) and the
        log-sum-exp: float32 ``[T, N, 1]`` or ``[B, N, S, 1]`` if asked for, else ``[0]``.
    """
    op = "npu_fused_infer_attention_score"
    require_absent(
        op,
        antiquant_mode=antiquant_mode,
        key_antiquant_mode=key_antiquant_mode,
        value_antiquant_mode=value_antiquant_mode,
        **unmodelled,
    )
    return _run(
        Call(
            op=op,
            query=query,
            key=key,
            value=value,
            layout=input_layout.partition("_")[0],
            out_layout=input_layout.rpartition("_")[2],
            input_layout=input_layout,
            heads=num_heads,
            kv_heads=num_key_value_heads or num_heads,
            scale=scale,
            atten_mask=atten_mask,
            q_lengths=actual_seq_lengths,
            kv_lengths=actual_seq_lengths_kv,
            block_table=block_table,
            block_size=block_size,
            sparse_mode=sparse_mode,
            pre_tokens=pre_tokens,
            next_tokens=next_tokens,
            inner_precise=inner_precise,
            return_lse=softmax_lse_flag,
            sink=None,
            query_rope=query_rope,
            key_rope=key_rope,
        )
    )


def fused_infer_attention_score_v2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    atten_mask: torch.Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    block_table: torch.Tensor | None = None,
    learnable_sink: torch.Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    pre_tokens: int = NO_BAND,
    next_tokens: int = NO_BAND,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    inner_precise: int = 0,
    return_softmax_lse: bool = False,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    **unmodelled: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Version 2: renamed arguments, and ``learnable_sink`` (bf16 ``[N]``, TND, value head size at most 128): a logit per
    head that is not scaled, takes part in the softmax's sum and has no value."""
    op = "npu_fused_infer_attention_score_v2"
    require_absent(op, **unmodelled)
    call = Call(
        op=op,
        query=query,
        key=key,
        value=value,
        layout=input_layout.partition("_")[0],
        out_layout=input_layout.rpartition("_")[2],
        input_layout=input_layout,
        heads=num_query_heads,
        kv_heads=num_key_value_heads or num_query_heads,
        scale=softmax_scale,
        atten_mask=atten_mask,
        q_lengths=actual_seq_qlen,
        kv_lengths=actual_seq_kvlen,
        block_table=block_table,
        block_size=block_size,
        sparse_mode=sparse_mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        inner_precise=inner_precise,
        return_lse=return_softmax_lse,
        sink=None,
        query_rope=query_rope,
        key_rope=key_rope,
    )
    if learnable_sink is not None:
        call = replace(call, sink=learnable_sink)
        check_sink(call)
    return _run(call)
