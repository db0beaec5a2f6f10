# SPDX-License-Identifier: Apache-2.0
"""What each rank of a world does. Inputs of every rank are a function of the seed, so that each knows all others'."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from .audit import Recorder
from .world import Operators


def ids_of(rank: int, batch: int, experts: int, k: int, seed: int) -> torch.Tensor:
    """Expert ids of one rank, distinct within a row."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(batch)]).int()


def weights_of(rank: int, batch: int, k: int) -> torch.Tensor:
    """Router weights of one rank, each row summing to one."""
    weights = torch.rand(batch, k, generator=torch.Generator().manual_seed(rank)) + 0.1
    return weights / weights.sum(1, keepdim=True)


def rows_of(rank: int, batch: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that name their origin: column 0 the rank, column 1 the token, then noise."""
    x = torch.randn(batch, hidden, generator=torch.Generator().manual_seed(rank)).to(dtype)
    x[:, 0], x[:, 1] = rank, torch.arange(batch)
    return x


def round_trip(
    ops: Operators,
    rank: int,
    size: int,
    batches: list[int],
    active: list[int] | None = None,
    experts_per_rank: int = 4,
    k: int = 3,
    hidden: int = 64,
    quant_mode: int = 0,
    comm_quant_mode: int = 0,
    version: int = 2,
    comm_alg: str = "",
    a2: bool = True,
    two_dimensional: bool = False,
    shared: bool = False,
    calls: int = 2,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Dispatch, prove every received row's origin, run experts that add their number to column 2, combine, compare.

    ``active`` gives the number of unmasked tokens per rank (None: no mask).
    """
    experts, batch = size * experts_per_rank, batches[rank]
    unequal = len(set(batches)) > 1
    for seed in range(calls):
        all_ids = [ids_of(r, batches[r], experts, k, seed) for r in range(size)]
        routes = [torch.ones(batches[r], k, dtype=torch.bool) for r in range(size)]
        if active is not None:
            for r in range(size):
                routes[r][active[r] :] = False
                if two_dimensional:
                    routes[r] &= torch.rand(batches[r], k, generator=torch.Generator().manual_seed(r)) < 0.6
                all_ids[r][~routes[r]] = -7  # what a mask hides must not be read
        x, ids, weights = rows_of(rank, batch, hidden, dtype), all_ids[rank], weights_of(rank, batch, k)
        group: dict[str, Any] = {
            "group_ep": ops.group,
            "ep_world_size": size,
            "ep_rank_id": rank,
            "moe_expert_num": experts,
            "global_bs": max(batches) * size if unequal else 0,
        }
        if version == 2:
            group["comm_alg"] = comm_alg
            if active is not None:
                group["x_active_mask"] = routes[rank] if two_dimensional else routes[rank][:, 0].contiguous()
        extra = {"expert_scales": weights} if a2 else {}
        dispatch = ops.dispatch if version == 2 else ops.dispatch_v1
        rows, scales, assist, counts, recv, _, expand_scales = dispatch(x, ids, quant_mode=quant_mode, **group, **extra)

        # Which rows must have come, and in which order: by local expert, source rank, token.
        expected = [
            (e, r, t, int((all_ids[r][t] == e).nonzero()[0]))
            for e in range(rank * experts_per_rank, (rank + 1) * experts_per_rank)
            for r in range(size)
            for t in range(batches[r])
            if bool(((all_ids[r][t] == e) & routes[r][t]).any())
        ]
        total = len(expected)
        capacity = max(batches) * size * min(experts_per_rank, k)
        assert rows.shape == (capacity, hidden)
        assert counts.tolist() == [
            sum(e == rank * experts_per_rank + i for e, *_ in expected) for i in range(experts_per_rank)
        ]
        received = rows[:total].float()
        if quant_mode:
            assert rows.dtype == torch.int8
            assert bool((rows[total:] == -128).all())
            received = received * scales[:total].unsqueeze(1)
            sources = [rows_of(r, batches[r], hidden, dtype).float() for r in range(size)]
            for row, (_, r, t, _) in zip(received, expected, strict=True):
                step = float(sources[r][t].abs().max()) / 127
                assert float((row - sources[r][t]).abs().max()) <= 0.51 * step
        else:
            assert bool(rows[total:].isnan().all())
            assert received[:, 0].tolist() == [r for _, r, _, _ in expected]
            assert received[:, 1].tolist() == [t for _, _, t, _ in expected]
            for row, (_, r, t, _) in zip(rows, expected, strict=False):
                assert torch.equal(row, rows_of(r, batches[r], hidden, dtype)[t])
        if a2:
            scales_back = [float(weights_of(r, batches[r], k)[t, j]) for _, r, t, j in expected]
            assert expand_scales[:total].tolist() == scales_back

        # The experts: identity, but column 2 holds the expert's number.
        output = torch.full((capacity, hidden), float("nan"), dtype=dtype)
        output[:total] = received.to(dtype)
        output[:total, 2] = torch.tensor([float(e) for e, *_ in expected])
        back: dict[str, Any] = {"expand_scales": expand_scales} if a2 else {}
        shared_x = torch.full((batch, hidden), 0.5, dtype=dtype)
        if shared:
            back["shared_expert_x"] = shared_x
        if version == 2:
            group["comm_alg"] = comm_alg if comm_alg == "hierarchy" or a2 else ""
            combined = ops.combine(output, ids, assist, recv, weights, comm_quant_mode=comm_quant_mode, **group, **back)
        else:
            combined = ops.combine_v1(output, ids, assist, recv, weights, **group, **back)
        assert combined.shape == (batch, hidden)
        assert combined.dtype == dtype
        kept = (weights * routes[rank]).sum(1, keepdim=True)
        want = x.float() * kept + (0.5 if shared else 0.0)
        want[:, 2] = (weights * routes[rank] * ids).sum(1) + (0.5 if shared else 0.0)
        written = routes[rank].any(1)
        assert bool(combined[~written].isnan().all())
        if quant_mode or comm_quant_mode:
            bound = (1 + (quant_mode > 0)) * 0.02 * max(experts, 3 + size)
            others = [c for c in range(hidden) if c != 2]
            assert bool(((combined.float() - want)[written][:, others].abs() <= bound).all())
        else:
            torch.testing.assert_close(combined[written].float(), want[written], rtol=2**-7, atol=2**-7)


def round_trips(ops: Operators, rank: int, size: int, cases: dict[str, dict[str, Any]]) -> None:
    """``round_trip`` once per case, in one world; a failure names its case."""
    for name, case in cases.items():
        try:
            round_trip(ops, rank, size, **case)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def token_numbers(ops: Operators, rank: int, size: int) -> list[int]:
    """expert_token_nums with type 0."""
    ids, x = ids_of(rank, 4, 2 * size, 2, 0), rows_of(rank, 4, 64, torch.float16)
    outputs = ops.dispatch(
        x, ids, ops.group, size, rank, 2 * size, expert_scales=weights_of(rank, 4, 2), expert_token_nums_type=0
    )
    return outputs[3].tolist()


def smooth_factors(ops: Operators, rank: int, size: int) -> None:
    """quant_mode 2 with one factor row per expert."""
    experts, batch, hidden = 2 * size, 3, 64
    factors = torch.rand(experts, hidden, generator=torch.Generator().manual_seed(0)) + 0.5
    x, ids = rows_of(rank, batch, hidden, torch.float16), ids_of(rank, batch, experts, 2, 0)
    rows, scales, *_ = ops.dispatch(
        x,
        ids,
        ops.group,
        size,
        rank,
        experts,
        scales=factors,
        quant_mode=2,
        expert_scales=weights_of(rank, batch, 2),
    )
    at = 0
    for e in (2 * rank, 2 * rank + 1):
        for r in range(size):
            for t in range(batch):
                if e in ids_of(r, batch, experts, 2, 0)[t].tolist():
                    want = rows_of(r, batch, hidden, torch.float16)[t].float() * factors[e]
                    got = rows[at].float() * scales[at]
                    assert float((got - want).abs().max()) <= 0.51 * float(want.abs().max()) / 127
                    at += 1


def broken(
    ops: Operators,
    rank: int,
    size: int,
    changes: dict[int, dict[str, Any]],
    combine_changes: dict[int, dict[str, Any]] | None = None,
    batches: list[int] | None = None,
    hidden: int = 64,
    a2: bool = True,
    version: int = 2,
) -> None:
    """A legal dispatch and combine, with changes on some ranks (``-1``: on all).

    ``version`` 12 is a dispatch of version 2 followed by a combine of version 1.
    """
    batch, experts, k = (batches or [4] * size)[rank], 4 * size, 2
    weights = weights_of(rank, batch, k)
    arguments: dict[str, Any] = {
        "x": rows_of(rank, batch, hidden, torch.bfloat16),
        "expert_ids": ids_of(rank, batch, experts, k, 0),
        "group_ep": ops.group,
        "ep_world_size": size,
        "ep_rank_id": rank,
        "moe_expert_num": experts,
        "expert_scales": weights if a2 else None,
    }
    arguments |= changes.get(-1, {}) | changes.get(rank, {})
    if arguments.pop("absent", False):
        return
    first = arguments.pop("version", version)
    outputs = (ops.dispatch_v1 if first == 1 else ops.dispatch)(**arguments)
    assist = "assist_info_for_combine" if version == 2 else "expand_idx"
    back: dict[str, Any] = {
        "expand_x": torch.zeros(outputs[0].shape, dtype=torch.bfloat16),
        "expert_ids": arguments["expert_ids"],
        assist: outputs[2],
        "ep_send_counts": outputs[4],
        "expert_scales": weights,
        "expand_scales": outputs[6] if a2 else None,
        **{name: arguments[name] for name in ("group_ep", "ep_world_size", "ep_rank_id", "moe_expert_num")},
    }
    spoil = (combine_changes or {}).get(-1, {}) | (combine_changes or {}).get(rank, {})
    if spoil.pop("absent", False):
        return
    if spoil.pop("changed assist", False):
        back[assist] = outputs[2] + 1
    if spoil.pop("other ids", False):
        back["expert_ids"] = ids_of(rank, batch, experts, k, 5)
    (ops.combine if version == 2 else ops.combine_v1)(**(back | spoil))


def ep_modules() -> list[ModuleType]:
    """The modules of dispatch and combine that check arguments."""
    from vllm_ascend_patch.virtual_npu.kernels import combine, dispatch, ep_common, ep_exchange, ep_limits

    return [combine, dispatch, ep_common, ep_exchange, ep_limits]


def broken_many(
    ops: Operators, rank: int, size: int, cases: list[dict[str, Any]]
) -> tuple[list[str | None], set[tuple[str, int]]]:
    """``broken`` once per case: what each call of this rank ended with, and which checks failed."""
    recorder = Recorder(ep_modules(), setattr)
    errors: list[str | None] = []
    for case in cases:
        try:
            broken(ops, rank, size, **case)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        else:
            errors.append(None)
    return errors, recorder.failed


def version_1(ops: Operators, rank: int, size: int) -> tuple[list[str | None], set[tuple[str, int]]]:
    """A round trip of version 1, then what it refuses."""
    round_trip(ops, rank, size, batches=[2] * size, hidden=7168, a2=False, version=1, calls=1)
    legal: dict[str, Any] = {"changes": {}, "hidden": 7168, "a2": False, "version": 1}
    mask = {"x_active_mask": torch.ones(4, dtype=torch.bool)}
    return broken_many(
        ops,
        rank,
        size,
        [
            legal,
            legal | {"combine_changes": {-1: {"changed assist": True}}},
            legal | {"changes": {-1: mask}},
        ],
    )
