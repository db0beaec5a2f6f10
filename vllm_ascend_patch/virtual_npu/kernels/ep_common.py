# SPDX-License-Identifier: Apache-2.0
"""What dispatch and combine share: their common arguments, the rules about them, and which rows go where."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .ep_exchange import Agreement, Communicator, require_equal
from .ep_limits import Sizes, check_window, window_megabytes
from .limits import require, require_dtype, require_ids, require_shape, soc, unsupported

MAX_NAME = 127


@dataclass(frozen=True)
class Group:
    """The arguments that name the group and its experts; the same in dispatch and combine."""

    group_ep: str
    ep_world_size: int
    ep_rank_id: int
    moe_expert_num: int
    group_tp: str
    tp_world_size: int
    tp_rank_id: int
    expert_shard_type: int
    shared_expert_num: int
    shared_expert_rank_num: int
    global_bs: int

    @property
    def local(self) -> int:
        """Experts per rank."""
        return self.moe_expert_num // self.ep_world_size


def check_group(op: str, group: Group) -> None:
    """Rules about the group arguments that need no other rank."""
    require(
        op, 1 <= len(group.group_ep) <= MAX_NAME, f"group_ep must have 1 to {MAX_NAME} characters", repr(group.group_ep)
    )
    ranks, rank = group.ep_world_size, group.ep_rank_id
    require(op, 0 <= rank < ranks, f"ep_rank_id must be in [0, {ranks})", rank)
    require(op, group.expert_shard_type == 0, "expert_shard_type must be 0", group.expert_shard_type)
    shared = (group.shared_expert_num, group.shared_expert_rank_num)
    if shared not in ((1, 0), (0, 0)):
        require(op, soc() == "A3", "shared-expert ranks exist on A3 only", f"shared_expert_num, _rank_num = {shared}")
        raise unsupported(op, "dedicated shared-expert ranks")
    require(op, group.tp_world_size in (0, 1), "tp_world_size must be 0 or 1 (TP was dropped)", group.tp_world_size)
    require(op, group.tp_rank_id == 0, "tp_rank_id must be 0", group.tp_rank_id)
    same = bool(group.group_tp) and group.group_tp == group.group_ep
    require(op, not (same and soc() == "A3"), "group_tp must differ from group_ep on A3", repr(group.group_tp))
    require(op, group.global_bs >= 0, "global_bs must not be negative", group.global_bs)


def check_communicator(op: str, group: Group, communicator: Communicator) -> None:
    """The communicator must be the one the arguments describe."""
    size, rank = communicator.size, communicator.rank
    require(op, group.ep_world_size == size, f"ep_world_size must be that of group_ep, {size}", group.ep_world_size)
    require(
        op, group.ep_rank_id == rank, f"ep_rank_id must be this process's rank in group_ep, {rank}", group.ep_rank_id
    )


def active_routes(
    op: str, expert_ids: torch.Tensor, mask: torch.Tensor | None, experts: int, *, two_dimensional: bool
) -> torch.Tensor:
    """bool ``[BS, K]``: the routes that take part. Checks ids and mask."""
    require_dtype(op, "expert_ids", expert_ids, (torch.int32,))
    batch, k = expert_ids.shape
    active = torch.ones(batch, k, dtype=torch.bool)
    if mask is not None:
        require_dtype(op, "x_active_mask", mask, (torch.bool,))
        if mask.dim() == 2:
            require(op, two_dimensional, "x_active_mask must be 1-D here (2-D: A3 without hierarchy)", list(mask.shape))
            require_shape(op, "x_active_mask", mask, (batch, k))
            active = mask.clone()
        else:
            require_shape(op, "x_active_mask", mask, (batch,))
            ordered = bool((mask[1:] <= mask[:-1]).all())
            require(op, ordered, "a 1-D x_active_mask must be all True first, then False", mask.int().tolist())
            active = mask.unsqueeze(1).expand(batch, k).clone()
    require_ids(op, "expert_ids", expert_ids[active], experts)
    # Inactive routes get ids of their own, so that only active ones can collide.
    ids = torch.where(active, expert_ids.long(), experts + torch.arange(k)).sort(dim=1).values
    twice = ids[:, 1:] == ids[:, :-1]
    if bool(twice.any()):
        row, column = torch.nonzero(twice)[0].tolist()
        expert = int(ids[row, column])
        raise RuntimeError(f"{op}: an expert must not occur twice in one row of expert_ids, got {expert} in row {row}")
    return active


@dataclass(frozen=True)
class Outgoing:
    """This rank's active routes in sending order: by expert (hence by rank), then by token.

    Attributes:
        routes: flat index ``token * K + k`` of every row that is sent.
        counts: rows per expert, ``[EP, L]``.
        position: place of every row among this rank's rows of the same expert.
    """

    routes: torch.Tensor
    counts: torch.Tensor
    position: torch.Tensor


def outgoing(group: Group, expert_ids: torch.Tensor, active: torch.Tensor) -> Outgoing:
    """Which rows go where."""
    flat = torch.nonzero(active.reshape(-1)).squeeze(1)
    experts, order = expert_ids.reshape(-1)[flat].long().sort(stable=True)
    counts = torch.bincount(experts, minlength=group.moe_expert_num)
    first = counts.cumsum(0) - counts
    position = torch.arange(len(flat)) - first[experts]
    return Outgoing(flat[order], counts.view(group.ep_world_size, group.local), position)


def common_fields(group: Group, sizes: Sizes, batch: int, masked: bool, algorithm: str) -> dict[str, int]:
    """Header fields that every call has."""
    known = ("fullmesh", "hierarchy", "fullmesh_v1", "fullmesh_v2")
    return {
        "batch size": batch,
        "x_active_mask given": int(masked),
        "hidden size": sizes.hidden,
        "top-k": sizes.top_k,
        "moe_expert_num": group.moe_expert_num,
        "global_bs": group.global_bs,
        "HCCL_BUFFSIZE": window_megabytes(sizes.op),
        "comm_alg": known.index(algorithm),
    }


def check_agreement(sizes: Sizes, group: Group, agreement: Agreement) -> None:
    """Rules that need all ranks: equal settings, equal batches or no mask, global_bs, the window."""
    op, ranks = sizes.op, group.ep_world_size
    equal = ("hidden size", "top-k", "moe_expert_num", "global_bs", "HCCL_BUFFSIZE", "comm_alg")
    require_equal(op, agreement, [*equal, *(name for name in agreement.values if name.startswith("same "))])
    batches = agreement.values["batch size"]
    largest = max(batches)
    if len(set(batches)) == 1:
        allowed = {0, largest * ranks}
        if sizes.version == 1 and sizes.soc == "A2":
            allowed.add(256 * ranks)
        shown = sorted(allowed)
        require(op, group.global_bs in allowed, f"global_bs with equal batches must be one of {shown}", group.global_bs)
    else:
        masked = agreement.values["x_active_mask given"]
        limit = "batch sizes that differ between ranks exclude x_active_mask"
        require(
            op,
            not any(masked),
            limit,
            f"batch sizes {batches}, masks on ranks {[r for r, m in enumerate(masked) if m]}",
        )
        wanted = largest * ranks
        limit = f"global_bs with batch sizes {batches} must be the largest times EP, {wanted}"
        require(op, group.global_bs == wanted, limit, group.global_bs)
    check_window(sizes, largest, window_megabytes(op))
