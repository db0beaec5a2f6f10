# SPDX-License-Identifier: Apache-2.0
"""``npu_moe_update_expert``: logical to physical experts where some are replicated."""

from __future__ import annotations

import torch

from .limits import poison, require, require_dim, require_dtype, require_ids, require_shape, soc


def moe_update_expert(
    expert_ids: torch.Tensor,
    eplb_table: torch.Tensor,
    *,
    expert_scales: torch.Tensor | None = None,
    pruning_threshold: torch.Tensor | None = None,
    active_mask: torch.Tensor | None = None,
    local_rank_id: int = -1,
    world_size: int = -1,
    balance_mode: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a replica for every (token, expert), by rank or by token, and drop experts below a threshold.

    Args:
        expert_ids: int32 or int64 ``[T, K]`` logical experts.
        eplb_table: int32 ``[E, F]``; column 0 the number of replicas (at least 1), then the physical experts.
        expert_scales: fp16, bf16 or fp32 ``[T, K]``, with ``pruning_threshold`` float32 ``[K]`` or ``[1, K]``:
            an expert is dropped if its scale is below threshold times the sum of the token's scales.
        active_mask: bool ``[T]``, all True first; needs the two above.
        balance_mode: 0 the replica of this rank's block of ``ceil(world / replicas)`` ranks; 1 token number modulo
            replicas.

    Returns:
        physical experts ``[T, K]`` in the dtype of the ids; bool ``[T, K]``, written only when pruning.
    """
    op = "npu_moe_update_expert"
    require(op, soc() == "A3", "the operator exists on A3 only", soc())
    require_dim(op, "expert_ids", expert_ids, 2)
    require_dtype(op, "expert_ids", expert_ids, (torch.int32, torch.int64))
    require_dim(op, "eplb_table", eplb_table, 2)
    require_dtype(op, "eplb_table", eplb_table, (torch.int32,))
    tokens, k = expert_ids.shape
    experts, columns = eplb_table.shape
    require_ids(op, "expert_ids", expert_ids, experts)
    replicas = eplb_table[:, 0].long()
    legal = bool(((replicas >= 1) & (replicas < columns)).all())
    require(op, legal, f"replica counts (column 0 of eplb_table) must be in [1, {columns - 1}]", replicas.tolist())
    require(op, balance_mode in (0, 1), "balance_mode must be 0 or 1", balance_mode)
    ids = expert_ids.long()
    count = replicas[ids]
    if balance_mode == 0:
        require(op, 2 <= world_size <= 768, "world_size must be in [2, 768]", world_size)
        require(op, 0 <= local_rank_id < world_size, f"local_rank_id must be in [0, {world_size})", local_rank_id)
        block = (world_size + count - 1) // count
        chosen = local_rank_id // block
    else:
        chosen = torch.arange(tokens).unsqueeze(1) % count
    physical = eplb_table[ids, chosen + 1].to(expert_ids.dtype)

    both = (expert_scales is None) == (pruning_threshold is None)
    require(op, both, "expert_scales and pruning_threshold must be given together", "one of them")
    if expert_scales is None or pruning_threshold is None:
        require(op, active_mask is None, "active_mask needs expert_scales and pruning_threshold", "a mask alone")
        return physical, poison((tokens, k), torch.uint8).bool()
    require_dtype(op, "expert_scales", expert_scales, (torch.float16, torch.bfloat16, torch.float32))
    require_shape(op, "expert_scales", expert_scales, (tokens, k))
    require_dtype(op, "pruning_threshold", pruning_threshold, (torch.float32,))
    require_shape(op, "pruning_threshold", pruning_threshold, (1, k) if pruning_threshold.dim() == 2 else (k,))
    scales = expert_scales.float()
    kept = scales >= pruning_threshold.reshape(1, k) * scales.sum(dim=1, keepdim=True)
    if active_mask is not None:
        require_dtype(op, "active_mask", active_mask, (torch.bool,))
        require_shape(op, "active_mask", active_mask, (tokens,))
        ordered = bool((active_mask[1:] <= active_mask[:-1]).all())
        require(op, ordered, "active_mask must be all True first, then False", active_mask.tolist())
        kept = kept & active_mask.unsqueeze(1)
    return physical, kept
