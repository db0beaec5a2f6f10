# SPDX-License-Identifier: Apache-2.0
"""The rules of ``npu_fused_infer_attention_score``: what the vendor documents about its arguments on A2 and A3.

Numbers come from the docstring in the torch_npu 2.13.0 wheel; where the newest op-plugin page is wider (TND with fp16,
paged TND, head size 64 for MHA, block sizes to 1024), the page is followed. What CANN 9.1 adds in layout TND (bands, sinks,
equal head sizes up to 256) is in its host checks, and refused where the machine is one of CANN 8.5. Calls with rope inputs
have rules of their own (fused_infer_latent_rules.py), which share what is public here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .limits import (
    INT32_MAX,
    newer_attention,
    require,
    require_contiguous,
    require_dim,
    require_dtype,
    require_ids,
    require_shape,
    unsupported,
)

LAYOUTS = ("BSH", "BSND", "BNSD", "TND", "BNSD_BSND")
COMPRESSED_MASK = 2048  # side of the mask that sparse modes 2 to 4 want
MAX_BATCH = 65536
MAX_TND_BATCH = 4096
MAX_HEADS = 256
MAX_GROUP = 64
MAX_INFER_SIZE, MAX_INFER_BLOCK = 256, 512  # of the kernel that CANN 9.1 has for plain TND calls
MAX_ROW = 65535  # elements of one cache row in the layout [blocks, block_size, kv_heads * D]


@dataclass(frozen=True)
class Call:
    """One call, version 1 or 2, with the argument names unified."""

    op: str
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    layout: str
    out_layout: str
    input_layout: str
    heads: int
    kv_heads: int
    scale: float
    atten_mask: torch.Tensor | None
    q_lengths: Sequence[int] | None
    kv_lengths: Sequence[int] | None
    block_table: torch.Tensor | None
    block_size: int
    sparse_mode: int
    pre_tokens: int
    next_tokens: int
    inner_precise: int
    return_lse: bool
    sink: torch.Tensor | None
    query_rope: torch.Tensor | None = None
    key_rope: torch.Tensor | None = None

    @property
    def queries(self) -> int:
        """S of a dense query, T of a TND one."""
        return self.query.shape[{"TND": 0, "BNSD": 2}.get(self.layout, 1)]

    @property
    def batch(self) -> int:
        return len(self.q_lengths or ()) if self.layout == "TND" else self.query.shape[0]

    @property
    def single_query(self) -> bool:
        """Decode in a dense layout: sparse_mode, query lengths and pre/next tokens are then ignored."""
        return self.layout != "TND" and self.queries == 1

    @property
    def head_size(self) -> int:
        return self.query.shape[2] // self.heads if self.layout == "BSH" else self.query.shape[-1]

    @property
    def value_head_size(self) -> int:
        flat = self.value.dim() == 3 and (self.block_table is not None or self.layout == "BSH")
        return self.value.shape[2] // self.kv_heads if flat else self.value.shape[-1]

    @property
    def infer_kernel(self) -> bool:
        """Whether CANN 9.1 has its own kernel for this TND call: equal head sizes up to 256, pages by token, no sink."""
        size, paged = self.head_size, self.block_table is not None
        pages = not paged or (self.key.dim() == 3 and 0 < self.key.shape[1] <= MAX_INFER_BLOCK)
        masked = self.sparse_mode in (3, 4) or self.heads == self.kv_heads
        sizes = size == self.value_head_size <= MAX_INFER_SIZE and size % 16 == 0
        return sizes and pages and masked and self.sink is None and self.inner_precise == 0

    def atten_mask_of(self, index: int, queries: int, keys: int) -> torch.Tensor:
        """The full mask of one request, True = masked."""
        assert self.atten_mask is not None
        mask = self.atten_mask
        if mask.dim() == 2:
            mask = mask[index : index + 1] if self.single_query and mask.shape[0] == self.batch else mask
        elif mask.shape[0] == self.batch and mask.dim() == 4:
            mask = mask[index, 0]
        else:
            mask = mask.reshape(mask.shape[-2:])
        return mask[:queries, :keys].bool()


@dataclass(frozen=True)
class Request:
    """One request's place: row of the batch, start and number of its queries and keys."""

    index: int
    q_start: int
    queries: int
    kv_start: int
    keys: int


def _per_request(lengths: Sequence[int], index: int) -> int:
    return lengths[0] if len(lengths) == 1 else lengths[index]


def _dense_keys(call: Call) -> int:
    return call.key.shape[2 if call.layout == "BNSD" else 1]


def requests(call: Call) -> Iterator[Request]:
    """The requests of a call whose arguments have been checked."""
    q_end = kv_end = 0
    for index in range(call.batch):
        if call.layout == "TND":
            assert call.q_lengths is not None
            assert call.kv_lengths is not None
            q_start, q_end = q_end, call.q_lengths[index]
            if call.block_table is None:
                kv_start, kv_end = kv_end, call.kv_lengths[index]
                yield Request(index, q_start, q_end - q_start, kv_start, kv_end - kv_start)
            else:
                yield Request(index, q_start, q_end - q_start, 0, call.kv_lengths[index])
            continue
        ignored = call.q_lengths is None or call.single_query
        queries = call.queries if ignored else _per_request(call.q_lengths or (), index)
        keys = _dense_keys(call) if call.kv_lengths is None else _per_request(call.kv_lengths, index)
        yield Request(index, 0, queries, 0, keys)


def check(call: Call) -> None:
    """Raise for the first documented limit that the call breaks."""
    op = call.op
    require(op, call.input_layout in LAYOUTS, f"input_layout must be one of {', '.join(LAYOUTS)}", call.input_layout)
    require_dtype(op, "query", call.query, (torch.float16, torch.bfloat16))
    for name, tensor in (("key", call.key), ("value", call.value)):
        require(op, tensor.dtype == call.query.dtype, f"{name} must have the dtype of query", tensor.dtype)
    require_contiguous(op, query=call.query, key=call.key, value=call.value, atten_mask=call.atten_mask)
    require_dim(op, f"query in layout {call.layout}", call.query, 3 if call.layout in ("BSH", "TND") else 4)
    if call.layout == "TND" and not (call.q_lengths and call.kv_lengths):
        both = f"{call.q_lengths} and {call.kv_lengths}"
        raise RuntimeError(f"{op}: TND needs the query and the key/value lengths, got {both}")
    _check_heads(call)
    if call.block_table is None:
        _check_dense(call)
    else:
        _check_paged(call)
    if call.layout == "TND":
        check_tnd(call)
    else:
        check_batched(call)
    _check_mask(call)


def _check_heads(call: Call) -> None:
    op, heads, kv_heads, size = call.op, call.heads, call.kv_heads, call.head_size
    require(op, heads > 0, "the number of heads must be positive", heads)
    require(op, heads <= MAX_HEADS, f"the number of heads must be at most {MAX_HEADS}", heads)
    require(op, heads % kv_heads == 0, f"key/value heads must divide the {heads} query heads", kv_heads)
    require(
        op, heads // kv_heads <= MAX_GROUP, f"query heads per key/value head at most {MAX_GROUP}", heads // kv_heads
    )
    if call.layout == "BSH":
        width = call.query.shape[2]
        require(op, width % heads == 0, f"the width of a BSH query must be a multiple of {heads} heads", width)
    else:
        in_shape = call.query.shape[1 if call.layout in ("TND", "BNSD") else 2]
        require(
            op, in_shape == heads, "the number of heads must be that of the query's shape", f"{heads} and {in_shape}"
        )
    require(op, call.inner_precise in (0, 1, 2, 3), "inner_precise must be 0 to 3", call.inner_precise)
    if call.layout == "TND" or call.single_query:
        require(op, call.inner_precise in (0, 1), "inner_precise must be 0 or 1 here", call.inner_precise)
    if call.layout != "TND":
        require(op, size <= 512 and size % 16 == 0, "head size must be at most 512 and a multiple of 16", size)
        if call.layout in ("BSH", "BSND") and call.queries > 1:
            require(
                op, heads * size < MAX_ROW, f"heads * head size must be below {MAX_ROW} in BSH and BSND", heads * size
            )
        return
    pair = (size, call.value_head_size)
    if size == 512:
        raise unsupported(op, "head size 512 without query_rope")
    plain = heads == kv_heads and call.block_table is None
    if newer_attention() and call.infer_kernel:
        return
    allowed = [(128, 128), (192, 128), (192, 192)] + ([(64, 64)] if heads == kv_heads or newer_attention() else [])
    allowed += [(256, 256)] if plain else []
    shown = ", ".join(f"{qk}/{v}" for qk, v in allowed)
    require(op, pair in allowed, f"TND head sizes (query-key/value) must be one of {shown}", f"{pair[0]}/{pair[1]}")
    if pair == (192, 192):
        require(op, plain, "TND value head size 192 excludes GQA and paging", f"{heads}/{kv_heads} heads")


def _check_dense(call: Call) -> None:
    op, key, value = call.op, call.key, call.value
    for name, tensor in (("key", key), ("value", value)):
        require_dim(op, f"{name} without block_table (the query's dimensions)", tensor, call.query.dim())
    if call.layout == "BSH":
        sizes = (key.shape[2] // call.kv_heads, call.head_size)
    else:
        axis = {"TND": 1, "BNSD": 1}.get(call.layout, 2)
        for name, tensor in (("key", key), ("value", value)):
            require(
                op, tensor.shape[axis] == call.kv_heads, f"{name} must have {call.kv_heads} heads", list(tensor.shape)
            )
        sizes = (key.shape[-1], call.head_size)
    require(op, sizes[0] == sizes[1], f"head size of key must be that of query, {sizes[1]}", sizes[0])
    if call.layout == "TND":
        require(op, key.shape[:2] == value.shape[:2], "key and value must have the same tokens", list(value.shape))
    else:
        require_shape(op, "value (the shape of key)", value, key.shape)
        require(op, key.shape[0] == call.batch, f"key must have the batch of query, {call.batch}", key.shape[0])


def _check_paged(call: Call) -> None:
    op, key, value, table = call.op, call.key, call.value, call.block_table
    assert table is not None
    check_table(call)
    require_dim(op, "a paged key", key, 3, 4)
    require_dim(op, "a paged value", value, key.dim())
    if call.layout in ("BSH", "BSND"):
        flat = "[blocks, block_size, kv_heads * head size]"
        require(op, key.dim() == 3, f"a {call.layout} query wants a paged key {flat}", list(key.shape))
    if key.dim() == 3:
        width = call.kv_heads * call.head_size
        require(op, key.shape[2] == width, f"a row of the paged key must hold {width} elements", key.shape[2])
        require(op, width <= MAX_ROW, f"kv_heads * head size must be at most {MAX_ROW}", width)
        block = key.shape[1]
        require(
            op, value.shape[:2] == key.shape[:2], "paged key and value must have the same blocks", list(value.shape)
        )
    else:
        if call.layout == "TND":
            mha = call.heads == call.kv_heads
            require(op, not mha, "a TND query without GQA wants [blocks, block_size, width] pages", list(key.shape))
        block = key.shape[2]
        require_shape(op, "key", key, (key.shape[0], call.kv_heads, block, call.head_size))
        require_shape(op, "value", value, (*key.shape[:3], value.shape[3]))
    if call.layout == "TND":
        legal, rule = 0 < block <= 1024 and block % 16 == 0, "a multiple of 16 up to 1024 (TND)"
    elif call.queries > 1:
        legal, rule = block in (128, 256, 384, 512), "128, 256, 384 or 512 (several queries per request)"
    else:
        legal, rule = 0 < block <= 512 and block % 16 == 0, "a multiple of 16 up to 512 (one query per request)"
    require(op, legal, f"block_size must be {rule}", block)
    check_pages(call, block)


def check_table(call: Call) -> None:
    """dtype and dimensions of the block table."""
    assert call.block_table is not None
    require_dtype(call.op, "block_table", call.block_table, (torch.int32,))
    require_dim(call.op, "block_table", call.block_table, 2)


def check_pages(call: Call, block: int) -> None:
    """Cache sizes, lengths and block table of a paged call, whatever form its pages have."""
    op, key, value, table = call.op, call.key, call.value, call.block_table
    assert table is not None
    require(op, call.block_size == block, f"block_size must be that of the cache, {block}", call.block_size)
    for name, tensor in (("key", key), ("value", value)):
        require(op, tensor.numel() <= INT32_MAX, f"elements of a paged {name} must fit int32", tensor.numel())
    require(op, call.kv_lengths is not None, "a paged call needs the key/value lengths", None)
    require(op, table.shape[0] == call.batch, f"block_table must have {call.batch} rows (the batch)", table.shape[0])
    lengths = [_per_request(call.kv_lengths or (), i) for i in range(call.batch)] if call.kv_lengths else []
    longest = max(lengths, default=0)
    needed = -(-longest // block)
    require(op, min(lengths, default=0) >= 0, "key/value lengths must not be negative", min(lengths, default=0))
    require(
        op,
        table.shape[1] >= needed,
        f"block_table needs {needed} columns for the longest request of {longest} tokens",
        table.shape[1],
    )
    for index, length in enumerate(lengths):
        used = table[index, : -(-length // block)]
        require_ids(op, f"block ids of request {index}", used, key.shape[0])


def check_sink(call: Call) -> None:
    """The learnable sink of version 2."""
    op, sink = call.op, call.sink
    assert sink is not None
    require(op, newer_attention(), "learnable_sink needs a CANN newer than 8.5", "8.5")
    require(op, call.layout == "TND", "learnable_sink needs layout TND", call.input_layout)
    require_dtype(op, "learnable_sink", sink, (torch.bfloat16,))
    require_dtype(op, "query beside learnable_sink", call.query, (torch.bfloat16,))
    require_shape(op, "learnable_sink", sink, (call.heads,))
    require_contiguous(op, learnable_sink=sink)
    pair = (call.head_size, call.value_head_size)
    sizes = pair[0] in (64, 128, 192) and pair[1] in (64, 128)
    require(op, sizes, "head sizes beside learnable_sink must be 64, 128, 192 / 64, 128", f"{pair[0]}/{pair[1]}")
    require(op, call.inner_precise == 0, "inner_precise beside learnable_sink must be 0", call.inner_precise)


def check_tnd(call: Call) -> None:
    """Lengths of a TND call."""
    op = call.op
    assert call.q_lengths is not None
    assert call.kv_lengths is not None
    _require_cumulative(call, "query lengths", call.q_lengths, call.queries)
    require(op, call.batch <= MAX_TND_BATCH, f"TND takes at most {MAX_TND_BATCH} requests", call.batch)
    given = len(call.kv_lengths)
    require(op, given == call.batch, f"TND needs one key/value length per request ({call.batch})", given)
    if call.block_table is None:
        _require_cumulative(call, "key/value lengths", call.kv_lengths, call.key.shape[0])
    if call.sparse_mode in (3, 4):
        for request in requests(call):
            require(
                op,
                request.queries <= request.keys or request.keys == 0,
                f"with sparse_mode {call.sparse_mode} request {request.index} must not have more queries than keys",
                f"{request.queries} queries and {request.keys} keys",
            )


def _require_cumulative(call: Call, name: str, sums: Sequence[int], total: int) -> None:
    steps = [after - before for before, after in zip((0, *sums), sums, strict=False)]
    shown = list(sums) if len(sums) <= 16 else [*sums[:16], "..."]
    require(call.op, min(steps) >= 0, f"TND {name} must be cumulative (never falling, no negative)", shown)
    require(call.op, sums[-1] == total, f"the last of the cumulative TND {name} must be the {total} tokens", sums[-1])


def check_batched(call: Call) -> None:
    """Batch and lengths of a call in another layout."""
    op, batch = call.op, call.batch
    require(op, batch <= MAX_BATCH, f"batch must be at most {MAX_BATCH}", batch)
    if call.out_layout != call.layout:
        require(op, call.queries > 1, f"{call.input_layout} needs more than one query per request", call.queries)
    for name, lengths, limit in (
        ("query", None if call.single_query else call.q_lengths, call.queries),
        ("key/value", call.kv_lengths, None if call.block_table is not None else _dense_keys(call)),
    ):
        if lengths is None:
            continue
        many = len(lengths)
        require(op, many == 1 or many >= batch, f"{name} lengths must be 1 or at least {batch} (the batch)", many)
        used = [_per_request(lengths, index) for index in range(batch)]
        require(op, min(used, default=0) >= 0, f"{name} lengths must not be negative", used)
        if limit is not None:
            require(op, max(used, default=0) <= limit, f"{name} lengths must be at most {limit}", used)


@functools.cache
def causal_mask() -> torch.Tensor:
    """The 2048 x 2048 mask that sparse modes 2 to 4 want: 1 above the diagonal."""
    return torch.ones(COMPRESSED_MASK, COMPRESSED_MASK, dtype=torch.uint8).triu_(diagonal=1)


_seen_masks: set[int] = set()  # addresses of masks that were compared in full


def _is_causal(mask: torch.Tensor) -> bool:
    """Compare all of a mask the first time, later its edges and its diagonal (4 MiB would dominate a decode step)."""
    good = causal_mask()
    if mask.data_ptr() not in _seen_masks:
        if not torch.equal(mask, good):
            return False
        _seen_masks.add(mask.data_ptr())
        return True
    edges = [(m[0], m[-1], m[:, 0], m[:, -1], m.diagonal(), m.diagonal(1)) for m in (mask, good)]
    return all(torch.equal(found, wanted) for found, wanted in zip(*edges, strict=True))


def _check_mask(call: Call) -> None:
    op, mode, mask = call.op, call.sparse_mode, call.atten_mask
    if mode == 9:
        raise unsupported(op, "sparse_mode 9 (tree mask)")
    require(op, mode in (0, 1, 2, 3, 4), "sparse_mode must be 0 to 4", mode)
    if mask is not None:
        require_dtype(op, "atten_mask", mask, (torch.bool, torch.int8, torch.uint8))
    if call.layout == "TND":
        legal = mode in (3, 4) if mask is not None else mode == 0
        got = f"sparse_mode {mode} {'without' if mask is None else 'with'} a mask"
        require(op, legal, "TND takes sparse_mode 0 without a mask, or 3 or 4 with one", got)
        require(op, mode != 4 or newer_attention(), "TND takes sparse_mode 0 or 3 with CANN 8.5", got)
    if call.single_query and mode in (2, 3, 4):
        return  # documented as ignored
    if mode in (2, 3, 4):
        check_compressed_mask(call)
    elif mask is not None:
        _check_full_mask(call, mask)
    elif mode == 1:
        raise RuntimeError(f"{op}: sparse_mode 1 needs the full atten_mask, got None")


def check_compressed_mask(call: Call) -> None:
    """The mask of sparse modes 2 to 4."""
    op, mode, mask, side = call.op, call.sparse_mode, call.atten_mask, COMPRESSED_MASK
    shapes = ((side, side), (1, side, side), (1, 1, side, side))
    found = None if mask is None else list(mask.shape)
    if mask is None or tuple(mask.shape) not in shapes:
        raise RuntimeError(f"{op}: sparse_mode {mode} needs an atten_mask of exactly {side}x{side}, got {found}")
    lower = _is_causal(mask.reshape(side, side).view(torch.uint8))
    require(op, lower, "atten_mask must be 1 above the diagonal and 0 elsewhere", "other values")


def _check_full_mask(call: Call, mask: torch.Tensor) -> None:
    op, queries, batch = call.op, call.queries, call.batch
    keys = _dense_keys(call) if call.block_table is None else call.block_table.shape[1] * call.block_size
    last, rows = mask.shape[-1], mask.shape[-2]
    require(op, last >= keys, f"the last dimension of atten_mask must be at least {keys}", list(mask.shape))
    if mask.dim() == 2:
        least = batch if queries == 1 else queries
        require(op, rows >= least, f"a 2-D atten_mask needs {least} rows", list(mask.shape))
        return
    leads = [(1,)] if mask.dim() == 3 else [(1, 1), (batch, 1)]
    fits = rows >= queries and tuple(mask.shape[:-2]) in leads
    require(op, fits, f"atten_mask must be [1 or batch {batch}, 1, {queries}, {keys}]", list(mask.shape))
