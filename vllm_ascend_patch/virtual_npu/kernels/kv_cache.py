# SPDX-License-Identifier: Apache-2.0
"""Writing into a cache: ``npu_scatter_pa_kv_cache``, ``_npu_reshape_and_cache``, ``npu_scatter_nd_update_``.

Reading it back is attention's business. All three write through their cache arguments.
"""

from __future__ import annotations

import torch

from .limits import (
    ABSENT,
    require,
    require_absent,
    require_contiguous,
    require_dim,
    require_dtype,
    require_ids,
    require_shape,
    require_unique,
    unsupported,
)

CACHE_DTYPES = (
    torch.float16,
    torch.float32,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
)
NZ_ROW_BYTES = 32  # the innermost dimension of the FRACTAL_NZ layout


def _is_nd(rows: torch.Tensor, cache: torch.Tensor) -> bool:
    return cache.shape[2:] == rows.shape[1:]


def _scatter_nd(rows: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """cache[slot // block_size, slot % block_size] = row."""
    block_size = cache.shape[1]
    cache[slots // block_size, slots % block_size] = rows


def _scatter_nz(rows: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """The same for a cache ``[blocks, heads * head_size / c, block_size, c]``: a row is cut into pieces of c."""
    _, pieces, block_size, width = cache.shape
    cache[slots // block_size, :, slots % block_size] = rows.reshape(-1, pieces, width)


def scatter_pa_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    compress_lens: torch.Tensor | None = None,
    compress_seq_offsets: torch.Tensor | None = None,
    seq_lens: torch.Tensor | None = None,
    cache_mode: object = ABSENT,
) -> None:
    """Write one key and one value row per token into its cache slot.

    Args:
        key: ``[T, kv_heads, key_head_size]``, contiguous.
        value: ``[T, kv_heads, value_head_size]``, contiguous, same dtype.
        key_cache: ``[blocks, block_size, kv_heads, head_size]`` (cache_mode ``"Norm"`` or None) or
            ``[blocks, kv_heads * head_size / c, block_size, c]`` with c elements in 32 bytes (``"PA_NZ"``, the default
            of torch_npu 2.13). torch_npu 2.7.1 has no cache_mode; there the shape decides.
        value_cache: likewise.
        slot_mapping: ``[T]`` int32 or int64, in ``[0, blocks * block_size)``, without repeats; padding slots (-1) are
            not allowed.
    """
    op = "npu_scatter_pa_kv_cache"
    if key.dim() == 4:
        raise unsupported(op, "a 4-D key (compressed cache)")
    require_absent(op, compress_lens=compress_lens, compress_seq_offsets=compress_seq_offsets, seq_lens=seq_lens)
    require_dtype(op, "key", key, CACHE_DTYPES)
    require_dtype(op, "slot_mapping", slot_mapping, (torch.int32, torch.int64))
    for name, tensor in (("value", value), ("key_cache", key_cache), ("value_cache", value_cache)):
        require(op, tensor.dtype == key.dtype, f"{name} must have the dtype of key ({key.dtype})", tensor.dtype)
    require_contiguous(
        op, key=key, value=value, key_cache=key_cache, value_cache=value_cache, slot_mapping=slot_mapping
    )
    require_dim(op, "key", key, 3)
    require_dim(op, "value", value, 3)
    require(
        op,
        value.shape[:2] == key.shape[:2],
        f"value must have the tokens and heads of key {list(key.shape[:2])}",
        list(value.shape),
    )
    require_shape(op, "slot_mapping (one slot per token)", slot_mapping, (key.shape[0],))
    require(
        op,
        cache_mode is ABSENT or cache_mode in (None, "Norm", "PA_NZ"),
        "cache_mode must be None, 'Norm' or 'PA_NZ'",
        repr(cache_mode),
    )
    writes = []
    for name, rows, cache in (("key_cache", key, key_cache), ("value_cache", value, value_cache)):
        require_dim(op, name, cache, 4)
        nd = _is_nd(rows, cache) if cache_mode is ABSENT else cache_mode != "PA_NZ"
        heads, size = rows.shape[1:]
        blocks = cache.shape[0]
        if nd:
            require_shape(op, f"{name} with cache_mode 'Norm'", cache, (blocks, cache.shape[1], heads, size))
            slots = blocks * cache.shape[1]
        else:
            width = NZ_ROW_BYTES // rows.element_size()
            expected = (blocks, heads * size // width, cache.shape[2], width)
            require_shape(op, f"{name} with cache_mode 'PA_NZ' (pass 'Norm' for an ND cache)", cache, expected)
            slots = blocks * cache.shape[2]
        require_ids(op, f"slot_mapping (slots of {name})", slot_mapping, slots)
        writes.append((_scatter_nd if nd else _scatter_nz, rows, cache))
    require_unique(op, "slot_mapping", slot_mapping)
    for write, rows, cache in writes:
        write(rows, cache, slot_mapping.long())


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_indices: torch.Tensor,
) -> None:
    """The ATB form: ND caches ``[blocks, block_size, kv_heads, head_size]`` and int32 slots ``[T]``."""
    op = "_npu_reshape_and_cache"
    require_dtype(op, "key", key, (torch.float16, torch.bfloat16, torch.int8))
    require_dtype(op, "slot_indices", slot_indices, (torch.int32,))
    require_dim(op, "key", key, 3)
    require_dim(op, "value", value, 3)
    require_shape(op, "slot_indices (one slot per token)", slot_indices, (key.shape[0],))
    for name, rows, cache in (("key_cache", key, key_cache), ("value_cache", value, value_cache)):
        require(op, rows.dtype == key.dtype, f"value must have the dtype of key ({key.dtype})", rows.dtype)
        require(op, cache.dtype == key.dtype, f"{name} must have the dtype of key ({key.dtype})", cache.dtype)
        require_dim(op, name, cache, 4)
        require_shape(op, name, cache, (*cache.shape[:2], *rows.shape[1:]))
        require_contiguous(op, **{name: cache})
        require_ids(op, f"slot_indices (slots of {name})", slot_indices, cache.shape[0] * cache.shape[1])
    require_unique(op, "slot_indices", slot_indices)
    _scatter_nd(key, key_cache, slot_indices.long())
    _scatter_nd(value, value_cache, slot_indices.long())


def scatter_nd_update_(self: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """``self[indices[..., 0], indices[..., 1], ...] = updates`` in place; returns ``self``.

    Args:
        self: the tensor to update.
        indices: ``[..., depth]`` int32 or int64; depth leading dimensions of ``self`` are indexed.
        updates: ``[..., *self.shape[depth:]]``, same dtype as ``self``.
    """
    op = "npu_scatter_nd_update_"
    require_dtype(op, "indices", indices, (torch.int32, torch.int64))
    require(op, updates.dtype == self.dtype, f"updates must have the dtype of self ({self.dtype})", updates.dtype)
    depth = indices.shape[-1] if indices.dim() else 0
    require(
        op,
        1 <= depth <= self.dim(),
        f"the last dimension of indices must index 1 to {self.dim()} dimensions",
        list(indices.shape),
    )
    require_shape(op, "updates", updates, (*indices.shape[:-1], *self.shape[depth:]))
    flat = indices.reshape(-1, depth).long()
    for axis in range(depth):
        require_ids(op, f"indices of dimension {axis}", flat[:, axis], self.shape[axis])
    self[tuple(flat.unbind(1))] = updates.reshape(-1, *self.shape[depth:])
    return self
