# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings: ``npu_rotary_mul``, ``npu_mrope``, ``npu_apply_rotary_pos_emb``.

Rotation happens in float32 and is rounded once, to the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .limits import require, require_dim, require_dtype, require_ids, require_shape, unsupported

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MODES = ("half", "interleave")


def _rotated(x: torch.Tensor, mode: str) -> torch.Tensor:
    """The quarter turn of every pair: (a, b) becomes (-b, a)."""
    if mode == "half":
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotary_mul(
    self: torch.Tensor,
    r1: torch.Tensor,
    r2: torch.Tensor,
    rotary_mode: str = "half",
    rotate: torch.Tensor | None = None,
) -> torch.Tensor:
    """``r1 * x + r2 * quarter_turn(x)``, out of place; r1 is the cosine, r2 the sine, both of full head size.

    Args:
        self: 4-D (BNSD, BSND or SBND), even head size below 896.
        r1: 4-D, broadcastable to ``self``; same dtype.
        r2: shaped like r1.
    """
    op = "npu_rotary_mul"
    require_dim(op, "input", self, 4)
    require_dtype(op, "input", self, FLOATS)
    head = self.shape[-1]
    require(op, head % 2 == 0 and 0 < head < 896, "head size must be even and below 896", head)
    require(op, rotary_mode in MODES, "rotary_mode must be 'half' or 'interleave'", repr(rotary_mode))
    if rotate is not None:
        raise unsupported(op, "argument rotate")
    for name, factor in (("r1", r1), ("r2", r2)):
        require(op, factor.dtype == self.dtype, f"{name} must have the dtype of the input ({self.dtype})", factor.dtype)
        require_dim(op, name, factor, 4)
        fits = factor.shape[-1] == head and all(
            f in (1, x) for f, x in zip(factor.shape[:-1], self.shape[:-1], strict=True)
        )
        require(
            op, fits, f"{name} must broadcast to {list(self.shape)} with the full head size {head}", list(factor.shape)
        )
    require_shape(op, "r2 (the shape of r1)", r2, r1.shape)
    batch_axes = [axis for axis in range(3) if self.shape[axis] >= 1000]
    require(op, len(batch_axes) <= 1, "B and N must be below 1000", list(self.shape))
    if rotary_mode == "interleave":
        require(
            op,
            sum(size > 1 for size in r1.shape[:3]) <= 1,
            "in interleave mode r1 may vary only over S (11SD, 1S1D, S11D)",
            list(r1.shape),
        )
    x = self.float()
    return (r1.float() * x + r2.float() * _rotated(x, rotary_mode)).to(self.dtype)


def mrope(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str | None = "half",
    cache_mode: str | None = "default",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate the first ``rotary_dim`` elements of every head by the angle of its token's position.

    Args:
        positions: ``[T]`` (one position per token) or ``[3, T]`` with ``mrope_section``; int32 or int64.
        query: ``[T, heads * head_size]``; fp16, bf16 or fp32.
        key: ``[T, kv_heads * head_size]``, same dtype.
        cos_sin_cache: ``[max_positions, rotary_dim]``, cosines then sines, same dtype; rotary_dim must be a multiple of
            32 (fp16, bf16) or 16 (fp32).
        mrope_section: how many of the ``rotary_dim / 2`` frequencies take their position from each row of positions.
    """
    op = "npu_mrope"
    require_dtype(op, "query", query, FLOATS)
    require_dtype(op, "positions", positions, (torch.int32, torch.int64))
    for name, tensor in (("query", query), ("key", key), ("cos_sin_cache", cos_sin_cache)):
        require_dim(op, name, tensor, 2)
        require(op, tensor.dtype == query.dtype, f"{name} must have the dtype of query ({query.dtype})", tensor.dtype)
    limit, rotary_dim = cos_sin_cache.shape
    multiple = 16 if query.dtype == torch.float32 else 32
    require(op, rotary_dim % multiple == 0, f"rotary_dim must be a multiple of {multiple} for this dtype", rotary_dim)
    require(op, 0 < rotary_dim <= head_size, f"rotary_dim must be in (0, head_size={head_size}]", rotary_dim)
    mode = rotary_mode or "half"
    require(op, mode in MODES, "rotary_mode must be 'half' or 'interleave'", repr(rotary_mode))
    if cache_mode not in (None, "default"):
        raise unsupported(op, f"cache_mode {cache_mode!r}")
    sections = list(mrope_section or [])
    multimodal = any(sections)
    require_dim(op, "positions", positions, 2 if multimodal else 1)
    tokens = query.shape[0]
    require_shape(op, "positions", positions, (3, tokens) if multimodal else (tokens,))
    require(op, key.shape[0] == tokens, f"key must have the {tokens} tokens of query", key.shape[0])
    for name, tensor in (("query", query), ("key", key)):
        require(op, tensor.shape[1] % head_size == 0, f"{name} must hold whole heads of {head_size}", tensor.shape[1])
    require_ids(op, "positions", positions, limit)

    half = rotary_dim // 2
    angles = cos_sin_cache.float()[positions.long()]
    cos, sin = angles[..., :half], angles[..., half:]
    if multimodal:
        require(
            op,
            len(sections) == 3 and sum(sections) == half,
            f"mrope_section must be 3 numbers that sum to rotary_dim / 2 = {half}",
            sections,
        )
        cos, sin = (
            torch.cat([part[row] for row, part in enumerate(f.split(sections, dim=-1))], dim=-1) for f in (cos, sin)
        )
    if mode == "half":
        cos, sin = (torch.cat((f, f), dim=-1).unsqueeze(1) for f in (cos, sin))
    else:
        cos, sin = (f.repeat_interleave(2, dim=-1).unsqueeze(1) for f in (cos, sin))

    def rotate(flat: torch.Tensor) -> torch.Tensor:
        heads = flat.float().reshape(tokens, flat.shape[1] // head_size, head_size)
        turning, staying = heads[..., :rotary_dim], heads[..., rotary_dim:]
        turned = turning * cos + _rotated(turning, mode) * sin
        return torch.cat((turned, staying), dim=-1).reshape(flat.shape).to(flat.dtype)

    return rotate(query), rotate(key)


def apply_rotary_pos_emb(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query and key IN PLACE and return them; the schema does not mark them as mutated, the device does it.

    Args:
        query: BSND (4-D) or TND (3-D); head size 64 or 128.
        key: like query except for its number of heads.
        cos: ``[..., 1, head_size]``, one row per token; same dtype as query.
        sin: shaped like cos.
    """
    op = "npu_apply_rotary_pos_emb"
    require(op, layout in ("BSND", "TND"), "layout must be 'BSND' or 'TND' on A2 and A3", repr(layout))
    require(op, rotary_mode == "half", "rotary_mode must be 'half' on A2 and A3", repr(rotary_mode))
    require_dtype(op, "query", query, FLOATS)
    dims = 4 if layout == "BSND" else 3
    head = query.shape[-1]
    require(op, head in (64, 128), "head size must be 64 or 128", head)
    for name, tensor in (("query", query), ("key", key), ("cos", cos), ("sin", sin)):
        require_dim(op, f"{name} in layout {layout}", tensor, dims)
        require(op, tensor.numel() > 0, f"{name} must not be empty", list(tensor.shape))
        require(op, tensor.dtype == query.dtype, f"{name} must have the dtype of query ({query.dtype})", tensor.dtype)
    lead = query.shape[: dims - 2]
    require_shape(op, "key", key, (*lead, key.shape[-2], head))
    require_shape(op, "cos", cos, (*lead, 1, head))
    require_shape(op, "sin", sin, (*lead, 1, head))
    for tensor in (query, key):
        x = tensor.float()
        tensor.copy_(x * cos.float() + _rotated(x, "half") * sin.float())
    return query, key
