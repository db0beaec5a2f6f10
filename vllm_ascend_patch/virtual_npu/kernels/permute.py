# SPDX-License-Identifier: Apache-2.0
"""``npu_moe_token_permute`` and ``npu_moe_token_unpermute``: token copies sorted by expert, and back."""

from __future__ import annotations

import torch

from .limits import require, require_dim, require_dtype, require_ids, require_unique, unsupported

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def moe_token_permute(
    tokens: torch.Tensor, indices: torch.Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """One copy of each token per index, sorted by index, stably.

    Args:
        tokens: ``[T, H]`` fp16, bf16 or fp32.
        indices: experts, int32 or int64, ``[T, K]`` or ``[T]``; K at most 512, values in ``[0, 16777215)``.
        num_out_tokens: keep this many copies; 0 or None keeps all, a negative number cuts that many off the end.

    Returns:
        the copies; int32 ``[T * K]``: the row of copy (t, k) before cutting, so that
        ``permuted[sorted_indices[t * K + k]] == tokens[t]``.
    """
    op = "npu_moe_token_permute"
    require_dim(op, "tokens", tokens, 2)
    require_dtype(op, "tokens", tokens, FLOATS)
    require_dim(op, "indices", indices, 1, 2)
    require_dtype(op, "indices", indices, (torch.int32, torch.int64))
    if padded_mode:
        raise unsupported(op, "padded_mode=True")
    k = indices.shape[1] if indices.dim() == 2 else 1
    require(op, k <= 512, "top-k must be at most 512", k)
    require(
        op, indices.shape[0] == tokens.shape[0], f"indices must have the {tokens.shape[0]} tokens", indices.shape[0]
    )
    copies = indices.numel()
    require(op, copies < 2**24 - 1, "indices must have fewer than 16777215 elements", copies)
    require_ids(op, "indices", indices, 2**24 - 1)
    order = indices.reshape(-1).sort(stable=True).indices
    destination = torch.empty(copies, dtype=torch.int32)
    destination[order] = torch.arange(copies, dtype=torch.int32)
    wanted = num_out_tokens or 0
    kept = min(wanted, copies) if wanted > 0 else copies + wanted
    require(op, kept >= 0, f"num_out_tokens must be at least {-copies}", wanted)
    return tokens[order[:kept] // k], destination


def moe_token_unpermute(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: object = None,
) -> torch.Tensor:
    """``out[t] = sum_k probs[t, k] * permuted[sorted_indices[t * K + k]]``, summed in float32; K is 1 without probs.

    Args:
        permuted_tokens: ``[rows, H]`` fp16, bf16 or fp32.
        sorted_indices: int32 ``[T * K]`` in ``[0, rows)`` without repeats; -1 is not allowed.
        probs: ``[T, K]`` fp32, fp16 or bf16.

    Returns:
        ``[T, H]`` of the tokens' dtype.
    """
    op = "npu_moe_token_unpermute"
    rows = permuted_tokens
    require_dim(op, "permuted_tokens", rows, 2)
    require_dtype(op, "permuted_tokens", rows, FLOATS)
    require_dim(op, "sorted_indices", sorted_indices, 1)
    require_dtype(op, "sorted_indices", sorted_indices, (torch.int32,))
    if padded_mode:
        raise unsupported(op, "padded_mode=True")
    k = 1
    if probs is not None:
        require_dim(op, "probs", probs, 2)
        require_dtype(op, "probs", probs, FLOATS)
        k = probs.shape[1]
        require(
            op,
            probs.numel() == sorted_indices.numel(),
            f"sorted_indices must have the {probs.numel()} elements of probs",
            sorted_indices.numel(),
        )
    require(op, k <= 512, "top-k must be at most 512", k)
    require_ids(op, "sorted_indices", sorted_indices, rows.shape[0])
    require_unique(op, "sorted_indices", sorted_indices)
    taken = rows[sorted_indices.long()].float().view(-1, k, rows.shape[1])
    if probs is not None:
        taken = taken * probs.float().unsqueeze(-1)
    return taken.sum(dim=1).to(rows.dtype)


def moe_token_unpermute_saving_rows(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: object = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``_npu_moe_token_unpermute``, what autograd's wrapper of ``npu_moe_token_unpermute`` calls: also the rows."""
    out = moe_token_unpermute(permuted_tokens, sorted_indices, probs, padded_mode, restore_shape)
    return out, permuted_tokens
