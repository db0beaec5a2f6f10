# SPDX-License-Identifier: Apache-2.0
"""``npu_moe_distribute_combine`` (v1, v2): expert rows return to their tokens, are weighted and summed.

What dispatch returned is checked here, not trusted: counts and origins that were changed in between are an error.
"""

from __future__ import annotations

import torch

from . import ep_exchange
from .ep_common import (
    Group,
    Outgoing,
    active_routes,
    check_agreement,
    check_communicator,
    check_group,
    common_fields,
    outgoing,
)
from .ep_limits import Sizes, check_sizes, resolve_algorithm
from .limits import ABSENT, poison, require, require_absent, require_dim, require_dtype, require_shape, soc, unsupported
from .quantise import quantise_rows


def moe_distribute_combine(
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    expand_idx: torch.Tensor,
    ep_send_counts: torch.Tensor,
    expert_scales: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    group_list: torch.Tensor | None = None,
    expand_scales: torch.Tensor | None = None,
    shared_expert_x: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
) -> torch.Tensor:
    """Version 1; ``expand_idx`` is int32 ``[BS * K]``. The arguments that it reserves must keep their defaults."""
    op = "npu_moe_distribute_combine"
    reserved = {
        "x_active_mask": x_active_mask,
        "activation_scale": activation_scale,
        "weight_scale": weight_scale,
        "group_list": group_list,
        "shared_expert_x": shared_expert_x,
    }
    for name, value in reserved.items():
        require(op, value is None, f"{name} is reserved and must be None", "a tensor")
    for name, number in (("out_dtype", out_dtype), ("group_list_type", group_list_type)):
        require(op, number == 0, f"{name} is reserved and must be 0", number)
    group = Group(
        group_ep,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        group_tp,
        tp_world_size,
        tp_rank_id,
        expert_shard_type,
        shared_expert_num,
        shared_expert_rank_num,
        global_bs,
    )
    return _Combine(
        op,
        1,
        group,
        expand_x,
        expert_ids,
        expand_idx,
        ep_send_counts,
        expert_scales,
        None,
        expand_scales,
        None,
        comm_quant_mode,
        "",
    ).run(None)


def moe_distribute_combine_v2(
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    assist_info_for_combine: torch.Tensor,
    ep_send_counts: torch.Tensor,
    expert_scales: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    expand_scales: torch.Tensor | None = None,
    shared_expert_x: torch.Tensor | None = None,
    elastic_info: torch.Tensor | None = None,
    ori_x: torch.Tensor | None = None,
    const_expert_alpha_1: torch.Tensor | None = None,
    const_expert_alpha_2: torch.Tensor | None = None,
    const_expert_v: torch.Tensor | None = None,
    performance_info: object = ABSENT,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    comm_quant_mode: int = 0,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> torch.Tensor:
    """``out[t] = sum_k expert_scales[t, k] * (row of (t, k)) + shared_expert_x[t]``.

    Args:
        expand_x: ``[A, H]`` bf16 or fp16, the experts' output in dispatch's order.
        expert_ids, group_ep, x_active_mask, global_bs and the rest of the group: as given to dispatch.
        assist_info_for_combine: dispatch's output 2; ep_send_counts: its output 4.
        expert_scales: float32 ``[BS, K]``, the router weights.
        expand_scales: dispatch's output 6: needed on A2, refused on A3 (but for hierarchy).
        shared_expert_x: ``[BS, H]``, A3 only; added unweighted.
        comm_quant_mode: 0, or 2: rows travel as int8.

    Returns:
        ``[BS, H]`` of expand_x's dtype; rows of tokens without an active route are unwritten.
    """
    op = "npu_moe_distribute_combine_v2"
    require(op, elastic_info is None, "elastic_info must be None", "a tensor")
    for name, count in (("zero", zero_expert_num), ("copy", copy_expert_num), ("const", const_expert_num)):
        if count:
            raise unsupported(op, f"{name} experts")
    require_absent(
        op,
        ori_x=ori_x,
        const_expert_alpha_1=const_expert_alpha_1,
        const_expert_alpha_2=const_expert_alpha_2,
        const_expert_v=const_expert_v,
    )
    info = performance_info if isinstance(performance_info, torch.Tensor) else None
    group = Group(
        group_ep,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        group_tp,
        tp_world_size,
        tp_rank_id,
        expert_shard_type,
        shared_expert_num,
        shared_expert_rank_num,
        global_bs,
    )
    return _Combine(
        op,
        2,
        group,
        expand_x,
        expert_ids,
        assist_info_for_combine,
        ep_send_counts,
        expert_scales,
        x_active_mask,
        expand_scales,
        shared_expert_x,
        comm_quant_mode,
        comm_alg,
    ).run(info)


class _Combine:
    """One call of either version."""

    def __init__(
        self,
        op: str,
        version: int,
        group: Group,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        assist: torch.Tensor,
        send_counts: torch.Tensor,
        expert_scales: torch.Tensor,
        mask: torch.Tensor | None,
        expand_scales: torch.Tensor | None,
        shared_expert_x: torch.Tensor | None,
        comm_quant_mode: int,
        comm_alg: str,
    ) -> None:
        self.op, self.version, self.group = op, version, group
        self.rows, self.expert_ids, self.mask = rows, expert_ids, mask
        self.assist, self.send_counts = assist, send_counts
        self.expert_scales, self.expand_scales = expert_scales, expand_scales
        self.shared_expert_x = shared_expert_x
        self.comm_quant_mode, self.comm_alg = comm_quant_mode, comm_alg

    def run(self, performance_info: torch.Tensor | None) -> torch.Tensor:
        op, group = self.op, self.group
        require_dim(op, "expand_x", self.rows, 2)
        require_dim(op, "expert_ids", self.expert_ids, 2)
        check_group(op, group)
        algorithm = resolve_algorithm(op, soc(), self.version, self.comm_alg, dispatch=False)
        batch, k = self.expert_ids.shape
        sizes = Sizes(
            op,
            self.version,
            soc(),
            algorithm,
            batch,
            self.rows.shape[1],
            k,
            group.moe_expert_num,
            group.ep_world_size,
        )
        communicator = ep_exchange.connect(group.group_ep)
        check_communicator(op, group, communicator)
        refusal: RuntimeError | None = None
        active = table = torch.empty(0)
        try:
            active, table = self._check(sizes, performance_info)
        except RuntimeError as error:
            refusal = error
        fields = common_fields(group, sizes, batch, self.mask is not None, algorithm)
        fields |= {
            "same comm_quant_mode": self.comm_quant_mode,
            "same dtype of expand_x": self.rows.element_size() * 2 + int(self.rows.dtype == torch.bfloat16),
        }
        agreement = ep_exchange.exchange_headers(op, communicator, fields, refusal)
        check_agreement(sizes, group, agreement)
        if performance_info is not None:
            performance_info += torch.tensor(agreement.waited, dtype=torch.int64)
        out = outgoing(group, self.expert_ids, active)
        returned = self._return(communicator, table, out)
        return self._sum(returned, out, active)

    def _check(self, sizes: Sizes, performance_info: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's arguments; returns the active routes and the rows received per (source rank, local expert)."""
        op, rows = self.op, self.rows
        require_dtype(op, "expand_x", rows, (torch.bfloat16, torch.float16))
        if self.mask is not None:
            hierarchy_a2 = sizes.soc == "A2" and sizes.algorithm == "hierarchy"
            require(op, not hierarchy_a2, "x_active_mask must be None with hierarchy on A2", "a mask")
        check_sizes(sizes)
        require_dtype(op, "expert_scales", self.expert_scales, (torch.float32,))
        require_shape(op, "expert_scales", self.expert_scales, (sizes.batch, sizes.top_k))
        if self.shared_expert_x is not None:
            require(op, sizes.soc == "A3", "shared_expert_x is not supported on A2", "a tensor")
            shared = self.shared_expert_x
            require(op, shared.dtype == rows.dtype, f"shared_expert_x must have dtype {rows.dtype}", shared.dtype)
            require_dim(op, "shared_expert_x", shared, 2, 3)
            self.shared_expert_x = shared.reshape(-1, shared.shape[-1])
            require_shape(op, "shared_expert_x", self.shared_expert_x, (sizes.batch, sizes.hidden))
        legal = sizes.soc == "A2" or sizes.algorithm == "hierarchy"
        given = self.expand_scales is not None
        if legal:
            require(op, given, f"expand_scales must be given on {sizes.soc} ({sizes.algorithm})", None)
        else:
            require(op, not given, "expand_scales must be None on A3 unless comm_alg is hierarchy", "a tensor")
        quant = self.comm_quant_mode
        require(op, quant in (0, 2), "comm_quant_mode must be 0 or 2", quant)
        hierarchy_only = sizes.soc == "A2" and sizes.algorithm != "hierarchy"
        require(op, quant == 0 or not hierarchy_only, "comm_quant_mode 2 needs hierarchy on A2", quant)
        if performance_info is not None:
            require_dtype(op, "performance_info", performance_info, (torch.int64,))
            require_shape(op, "performance_info", performance_info, (sizes.ranks,))
        active = active_routes(
            op,
            self.expert_ids,
            self.mask,
            sizes.experts,
            two_dimensional=sizes.soc == "A3" and sizes.algorithm != "hierarchy",
        )
        return active, self._received(sizes)

    def _received(self, sizes: Sizes) -> torch.Tensor:
        """``[source rank, local expert]`` from the prefix sums that dispatch returned."""
        op, pairs = self.op, sizes.ranks * sizes.local
        require_dtype(op, "ep_send_counts", self.send_counts, (torch.int32,))
        require_dtype(op, "assist_info_for_combine / expand_idx", self.assist, (torch.int32,))
        enough = self.send_counts.dim() == 1 and len(self.send_counts) >= pairs
        require(op, enough, f"ep_send_counts must have at least {pairs} elements", list(self.send_counts.shape))
        counts = self.send_counts[:pairs].long().diff(prepend=torch.zeros(1, dtype=torch.int64))
        total = int(counts.sum())
        sane = bool((counts >= 0).all()) and total <= len(self.rows)
        require(op, sane, "ep_send_counts must be what dispatch returned", self.send_counts[:pairs].tolist()[:64])
        if self.version == 2:
            origin = self.assist[: 3 * total]
            enough = len(origin) == 3 * total
            require(op, enough, "assist_info_for_combine must be what dispatch returned", list(self.assist.shape))
        return counts.view(sizes.local, sizes.ranks).t()

    def _return(self, communicator: ep_exchange.Communicator, table: torch.Tensor, out: Outgoing) -> torch.Tensor:
        """Send every row home; returns this rank's rows in the order it had sent them, float32."""
        op, group = self.op, self.group
        sources = torch.arange(group.ep_world_size).repeat(group.local).repeat_interleave(table.t().reshape(-1))
        order = sources.sort(stable=True).indices  # by source rank, then expert
        rows = self.rows[: len(sources)][order]
        here = out.counts.sum(dim=1)
        home = ep_exchange.exchange_counts(op, communicator, table.sum(dim=1, keepdim=True)).squeeze(1)
        refusal = None
        if not torch.equal(here, home):
            peer = int((here != home).nonzero()[0])
            refusal = RuntimeError(
                f"{op}: rank {peer} must return the {int(here[peer])} rows it got (expert_ids, x_active_mask and "
                f"ep_send_counts must be those of dispatch), got {int(home[peer])}"
            )
        # All ranks go on, or none: the row counts would not fit.
        ep_exchange.exchange_headers(op, communicator, {}, refusal)
        sent, received = table.sum(dim=1).tolist(), here.tolist()

        def move(values: torch.Tensor) -> torch.Tensor:
            return ep_exchange.exchange_rows(op, communicator, values, sent, received)

        if self.comm_quant_mode == 2:
            quantised, scales = quantise_rows(rows)
            returned = move(quantised).float() * move(scales.unsqueeze(1))
        else:
            returned = move(rows).float()
        k = self.expert_ids.shape[1]
        if self.version == 2:
            origin = move(self.assist[: 3 * len(sources)].view(-1, 3)[order])
            mine = torch.stack((torch.full_like(out.routes, group.ep_rank_id), out.routes // k, out.routes % k), dim=1)
            same = torch.equal(origin.long(), mine)
            require(op, same, "assist_info_for_combine must be what dispatch returned", "other origins")
        else:
            same = len(self.assist) == self.expert_ids.numel()
            same = same and torch.equal(self.assist[out.routes].long(), out.position)
            require(op, same, "expand_idx must be what dispatch returned", "other positions")
        return returned

    def _sum(self, returned: torch.Tensor, out: Outgoing, active: torch.Tensor) -> torch.Tensor:
        batch, k = self.expert_ids.shape
        weights = self.expert_scales.reshape(-1)[out.routes].unsqueeze(1)
        total = torch.zeros(batch, self.rows.shape[1], dtype=torch.float32)
        total.index_add_(0, out.routes // k, returned * weights)
        if self.shared_expert_x is not None:
            total += self.shared_expert_x.float()
        result = poison(total.shape, self.rows.dtype)
        written = active.any(dim=1)
        result[written] = total[written].to(self.rows.dtype)
        return result
