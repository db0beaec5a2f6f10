# SPDX-License-Identifier: Apache-2.0
"""``npu_moe_distribute_dispatch`` (v1, v2): every token's row goes to the ranks of its experts.

Output 2 (v2: int32 triples (source rank, token, k) per received row; v1: place of each own row in its expert's block) and
the tails of the others follow no documented format: callers pass them to combine unchanged.
"""

from __future__ import annotations

import torch

from . import ep_exchange
from .ep_common import Group, active_routes, check_agreement, check_communicator, check_group, common_fields, outgoing
from .ep_limits import Sizes, check_sizes, resolve_algorithm
from .limits import ABSENT, poison, require, require_dim, require_dtype, require_shape, soc, unsupported
from .quantise import quantise_rows

TRIPLE = 128  # int32 per row that output 2 of version 2 reserves

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def moe_distribute_dispatch(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    expert_scales: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
) -> Outputs:
    """Version 1; arguments and results as version 2, without mask and comm_alg."""
    op = "npu_moe_distribute_dispatch"
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
    return _Dispatch(
        op, 1, group, x, expert_ids, scales, x_active_mask, expert_scales, quant_mode, expert_token_nums_type, ""
    ).run(None)


def moe_distribute_dispatch_v2(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    expert_scales: torch.Tensor | None = None,
    elastic_info: torch.Tensor | None = None,
    performance_info: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
    y_dtype: object = ABSENT,
    x_dtype: object = ABSENT,
    scales_dtype: object = ABSENT,
) -> Outputs:
    """Send each row of x to the ranks of its experts. BS tokens here, K experts each, L = E / EP experts per rank.

    Args:
        x: ``[BS, H]`` bf16 or fp16.
        expert_ids: int32 ``[BS, K]`` in ``[0, E)``, no expert twice in a row.
        scales: float32 ``[E, H]`` smooth factors; quant_mode 2 only.
        x_active_mask: bool ``[BS]``, True first, or (A3) ``[BS, K]``; only if BS is equal on all ranks.
        expert_scales: float32 ``[BS, K]``: needed on A2, refused on A3 (but for hierarchy).
        performance_info: int64 ``[EP]``, microseconds waited for each rank are added.
        quant_mode: 0, or 2 dynamic int8 per row.
        global_bs: 0 or BS * EP; with unequal batches the largest BS * EP.
        expert_token_nums_type: 1 counts, 0 prefix sums.

    Returns:
        expand_x ``[A, H]`` with A = global_bs * min(L, K), rows by local expert, then source rank, then token; dynamic
        scales float32 ``[A]``; assist info int32; expert_token_nums int64 ``[L]``; ep_recv_counts int32 (prefix sums over
        local expert, then source rank); tp_recv_counts; expand_scales float32. Rows past the received ones are unwritten.
    """
    op = "npu_moe_distribute_dispatch_v2"
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
    call = _Dispatch(
        op, 2, group, x, expert_ids, scales, x_active_mask, expert_scales, quant_mode, expert_token_nums_type, comm_alg
    )
    require(op, elastic_info is None, "elastic_info must be None", "a tensor")
    for name, count in (("zero", zero_expert_num), ("copy", copy_expert_num), ("const", const_expert_num)):
        if count:
            raise unsupported(op, f"{name} experts")
    for name, dtype in (("y_dtype", y_dtype), ("x_dtype", x_dtype), ("scales_dtype", scales_dtype)):
        if dtype is not ABSENT and dtype is not None:
            raise unsupported(op, f"argument {name}")
    return call.run(performance_info)


class _Dispatch:
    """One call of either version."""

    def __init__(
        self,
        op: str,
        version: int,
        group: Group,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        scales: torch.Tensor | None,
        mask: torch.Tensor | None,
        expert_scales: torch.Tensor | None,
        quant_mode: int,
        token_nums_type: int,
        comm_alg: str,
    ) -> None:
        self.op, self.version, self.group = op, version, group
        self.x, self.expert_ids, self.mask = x, expert_ids, mask
        self.scales, self.expert_scales = scales, expert_scales
        self.quant_mode, self.token_nums_type, self.comm_alg = quant_mode, token_nums_type, comm_alg

    def run(self, performance_info: torch.Tensor | None) -> Outputs:
        op, group = self.op, self.group
        require_dim(op, "x", self.x, 2)
        require_dim(op, "expert_ids", self.expert_ids, 2)
        check_group(op, group)
        algorithm = resolve_algorithm(op, soc(), self.version, self.comm_alg, dispatch=True)
        batch, hidden = self.x.shape
        sizes = Sizes(
            op,
            self.version,
            soc(),
            algorithm,
            batch,
            hidden,
            self.expert_ids.shape[1],
            group.moe_expert_num,
            group.ep_world_size,
        )
        communicator = ep_exchange.connect(group.group_ep)
        check_communicator(op, group, communicator)
        refusal: RuntimeError | None = None
        active = torch.empty(0)
        try:
            active = self._check(sizes, performance_info)
        except RuntimeError as error:
            refusal = error
        fields = common_fields(group, sizes, batch, self.mask is not None, algorithm)
        fields |= {
            "same quant_mode": self.quant_mode,
            "same dtype of x": self.x.element_size() * 2 + int(self.x.dtype == torch.bfloat16),
            "same scales": int(self.scales is not None),
            "same expert_scales": int(self.expert_scales is not None),
        }
        agreement = ep_exchange.exchange_headers(op, communicator, fields, refusal)
        check_agreement(sizes, group, agreement)
        if performance_info is not None:
            performance_info += torch.tensor(agreement.waited, dtype=torch.int64)
        return self._send(communicator, active)

    def _check(self, sizes: Sizes, performance_info: torch.Tensor | None) -> torch.Tensor:
        """This rank's arguments; returns the active routes."""
        op, version, soc_name, algorithm = self.op, self.version, sizes.soc, sizes.algorithm
        require_dtype(op, "x", self.x, (torch.bfloat16, torch.float16))
        if self.mask is not None:
            require(op, version == 2, "x_active_mask must be None in version 1", "a mask")
            hierarchy_a2 = soc_name == "A2" and algorithm == "hierarchy"
            require(op, not hierarchy_a2, "x_active_mask must be None with hierarchy on A2", "a mask")
        check_sizes(sizes)
        require_shape(op, "expert_ids", self.expert_ids, (sizes.batch, sizes.top_k))
        require(op, self.quant_mode in (0, 2), "quant_mode must be 0 or 2 on A2 and A3", self.quant_mode)
        kind = self.token_nums_type
        require(op, kind in (0, 1), "expert_token_nums_type must be 0 (sums) or 1 (counts)", kind)
        if self.scales is not None:
            require(op, self.quant_mode == 2, "scales needs quant_mode 2", self.quant_mode)
            require_dtype(op, "scales", self.scales, (torch.float32,))
            require_shape(op, "scales", self.scales, (sizes.experts, sizes.hidden))
        check_expert_scales(op, sizes, self.expert_scales)
        if performance_info is not None:
            require_dtype(op, "performance_info", performance_info, (torch.int64,))
            require_shape(op, "performance_info", performance_info, (sizes.ranks,))
        return active_routes(
            op,
            self.expert_ids,
            self.mask,
            sizes.experts,
            two_dimensional=soc_name == "A3" and algorithm != "hierarchy",
        )

    def _send(self, communicator: ep_exchange.Communicator, active: torch.Tensor) -> Outputs:
        group, k = self.group, self.expert_ids.shape[1]
        out = outgoing(group, self.expert_ids, active)
        tokens = out.routes // k
        rows = self.x[tokens]
        row_scales = None
        if self.quant_mode == 2:
            experts = self.expert_ids.reshape(-1)[out.routes].long()
            rows, row_scales = quantise_rows(rows, None if self.scales is None else self.scales[experts])
        table = ep_exchange.exchange_counts(self.op, communicator, out.counts)  # [source rank, local expert]
        sent, received = (counts.sum(dim=1).tolist() for counts in (out.counts, table))
        # Rows arrive by source rank, then expert; they are wanted by expert, then source rank.
        arrived = torch.arange(group.local).repeat(group.ep_world_size).repeat_interleave(table.reshape(-1))
        order = arrived.sort(stable=True).indices

        def move(values: torch.Tensor) -> torch.Tensor:
            return ep_exchange.exchange_rows(self.op, communicator, values, sent, received)[order]

        origin = torch.stack((torch.full_like(tokens, group.ep_rank_id), tokens, out.routes % k), dim=1).int()
        return self._outputs(
            table,
            out.position,
            out.routes,
            move(rows),
            None if row_scales is None else move(row_scales.unsqueeze(1)).squeeze(1),
            move(origin),
            None
            if self.expert_scales is None
            else move(self.expert_scales.reshape(-1)[out.routes].unsqueeze(1)).squeeze(1),
        )

    def _outputs(
        self,
        table: torch.Tensor,
        position: torch.Tensor,
        routes: torch.Tensor,
        rows: torch.Tensor,
        row_scales: torch.Tensor | None,
        origin: torch.Tensor,
        expert_scales: torch.Tensor | None,
    ) -> Outputs:
        """Statically sized outputs; what was not received stays unwritten."""
        group, (batch, k) = self.group, self.expert_ids.shape
        total_batch = group.global_bs or batch * group.ep_world_size
        capacity = total_batch * min(group.local, k)
        count = len(rows)
        expand_x = poison((capacity * max(group.tp_world_size, 1), self.x.shape[1]), rows.dtype)
        expand_x[:count] = rows
        dynamic_scales = poison((len(expand_x),), torch.float32)
        if row_scales is not None:
            dynamic_scales[:count] = row_scales
        if self.version == 2:
            assist = poison((max(batch * k, capacity * TRIPLE),), torch.int32)
            assist[: 3 * count] = origin.reshape(-1)
        else:
            assist = poison((batch * k,), torch.int32)
            assist[routes] = position.int()
        per_expert = table.sum(dim=0)
        nums = per_expert if self.token_nums_type == 1 else per_expert.cumsum(0)
        sums = table.t().reshape(-1).cumsum(0).int()
        extra = 0 if expert_scales is None else total_batch * 2 * k * (group.ep_world_size // 8)
        recv_counts = poison((len(sums) + extra,), torch.int32)
        recv_counts[: len(sums)] = sums
        tp_counts = torch.full((group.tp_world_size,), count, dtype=torch.int32)
        expand_scales = poison((0 if expert_scales is None else capacity,), torch.float32)
        if expert_scales is not None:
            expand_scales[:count] = expert_scales
        return expand_x, dynamic_scales, assist, nums, recv_counts, tp_counts, expand_scales


def check_expert_scales(op: str, sizes: Sizes, expert_scales: torch.Tensor | None) -> None:
    """Dispatch's ``expert_scales``: needed on A2 and with hierarchy, refused elsewhere."""
    if expert_scales is None:
        wanted = sizes.soc == "A2" or sizes.algorithm == "hierarchy"
        require(op, not wanted, f"expert_scales must be given on {sizes.soc} ({sizes.algorithm})", None)
        return
    legal = sizes.soc == "A2" or sizes.algorithm == "hierarchy"
    require(op, legal, "expert_scales must be None on A3 unless comm_alg is hierarchy", "a tensor")
    require_dtype(op, "expert_scales", expert_scales, (torch.float32,))
    require_shape(op, "expert_scales", expert_scales, (sizes.batch, sizes.top_k))
