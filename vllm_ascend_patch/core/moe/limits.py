# SPDX-License-Identifier: Apache-2.0
"""What the vendor documents about the dispatch/combine operators: a table, and checks against it. Pure arithmetic.

Numbers: op-plugin reference pages of ``npu_moe_distribute_dispatch(_v2)`` and ``_combine(_v2)`` (editions of 2025, 2026).
Where the editions differ, a row holds both: fields called ``any_release`` say what every edition allows, and the
automatic choice keeps to them; the others say what the newest edition allows, and a forced choice may use it. Which CANN
release first allowed it is not documented.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .errors import MoEConfigError
from .soc import Soc

MIB = 1 << 20
HCCL_BUFFSIZE_DEFAULT_MIB = 200
"""HCCL's window per communicator when ``HCCL_BUFFSIZE`` is not set."""

HIDDEN_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class MoEFacts:
    """The constants that decide what is possible. The same on every rank.

    Attributes:
        soc: Ascend generation.
        operator_version: 1 or 2, the dispatch/combine operators that torch_npu has.
        tp_size: tensor parallel ranks.
        dp_size: data parallel ranks.
        ep_size: ranks that experts are distributed over; 1 without expert parallelism.
        num_experts: physical experts, redundant ones included.
        hidden_size: H.
        top_k: experts per token.
        dtype: of the hidden states, as in ``str(torch.dtype)`` without the prefix.
        num_nodes: hosts that the expert parallel ranks span, as a rank is told.
        ranks_per_host: expert parallel ranks of each host, in rank order; empty where all are on one, or where that is not
            known or a host's ranks do not follow each other.
        links: GB/s that a rank can send inside its host, and to other hosts; None for the SoC's (``cost.LINKS``).
        hccl_buffsize_mib: ``HCCL_BUFFSIZE``, or the communicator's own window; None when not set.
        quantized: W8A8 experts (int8 rows travel).
        sequence_parallel: each TP rank already holds its own chunk of the tokens when an MoE layer begins.
        newest_limits: let the automatic choice use the limits of the newest edition, on an installation known to have
            them (smaller expert parallel sizes and more experts per rank on A2).
    """

    soc: Soc
    operator_version: int
    tp_size: int
    dp_size: int
    ep_size: int
    num_experts: int
    hidden_size: int
    top_k: int
    dtype: str = "bfloat16"
    num_nodes: int = 1
    hccl_buffsize_mib: int | None = None
    quantized: bool = False
    newest_limits: bool = False
    sequence_parallel: bool = False
    ranks_per_host: tuple[int, ...] = ()
    links: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        sizes = (
            self.tp_size,
            self.dp_size,
            self.ep_size,
            self.num_experts,
            self.hidden_size,
            self.top_k,
            self.num_nodes,
        )
        if min(sizes) < 1 or self.operator_version not in (1, 2):
            raise MoEConfigError(f"sizes have to be at least 1 and the operator version 1 or 2: {self}")
        if self.links is not None and min(self.links) <= 0:
            raise MoEConfigError(f"links of {self.links} GB/s: both have to be above 0")
        if self.ranks_per_host and (sum(self.ranks_per_host) != self.ep_size or min(self.ranks_per_host) < 1):
            raise MoEConfigError(
                f"hosts with {self.ranks_per_host} ranks do not make {self.ep_size} expert parallel ranks"
            )

    @property
    def local_experts(self) -> int:
        """Most experts on any rank."""
        return -(-self.num_experts // self.ep_size)


@dataclass(frozen=True)
class Mc2Limits:
    """One row of the table: one pair of operators on one generation, with the algorithm that is used there.

    Attributes:
        ep_sizes: expert parallel sizes in the newest edition.
        ep_sizes_any_release: those in every edition.
        max_rows: tokens per rank and call.
        max_experts: physical experts.
        max_local_experts: experts per rank in the newest edition; None where not limited.
        max_local_experts_any_release: experts per rank in every edition; None where no edition limits them.
        max_experts_times_ranks: experts per rank x EP, None where not limited.
        hidden: smallest, largest and step of the hidden size.
        max_top_k: experts per token.
        nodes: hosts; None where not limited (A3 has to stay within one super-node).
        masks_tokens: whether rows can be masked.
    """

    ep_sizes: Collection[int]
    ep_sizes_any_release: Collection[int]
    max_rows: int
    max_experts: int
    max_local_experts: int | None
    max_local_experts_any_release: int | None
    max_experts_times_ranks: int | None
    hidden: tuple[int, int, int]
    max_top_k: int
    nodes: tuple[int, ...] | None
    masks_tokens: bool


MC2_LIMITS: dict[tuple[Soc, int], Mc2Limits] = {
    # v2, comm_alg "fullmesh". EP 192 and 384 appear in one edition only and are left out.
    (Soc.A2, 2): Mc2Limits(
        ep_sizes=(2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256),
        ep_sizes_any_release=(16, 32, 64, 128, 256),
        max_rows=256,
        max_experts=1024,
        max_local_experts=None,
        max_local_experts_any_release=24,
        max_experts_times_ranks=None,
        hidden=(32, 7168, 32),
        max_top_k=16,
        nodes=(1, 2, 4, 8),
        masks_tokens=True,
    ),
    # v2, comm_alg "" (full mesh, version 1).
    (Soc.A3, 2): Mc2Limits(
        ep_sizes=range(2, 769),
        ep_sizes_any_release=range(2, 769),
        max_rows=512,
        max_experts=1024,
        max_local_experts=None,
        max_local_experts_any_release=None,
        max_experts_times_ranks=2048,
        hidden=(1024, 8192, 1),
        max_top_k=16,
        nodes=None,
        masks_tokens=True,
    ),
    (Soc.A2, 1): Mc2Limits(
        ep_sizes=(16, 32, 64),
        ep_sizes_any_release=(16, 32, 64),
        max_rows=256,
        max_experts=512,
        max_local_experts=24,
        max_local_experts_any_release=24,
        max_experts_times_ranks=None,
        hidden=(32, 7168, 32),
        max_top_k=16,
        nodes=(1, 2, 4, 8),
        masks_tokens=False,
    ),
    (Soc.A3, 1): Mc2Limits(
        ep_sizes=(8, 16, 32, 64, 128, 144, 256, 288),
        ep_sizes_any_release=(8, 16, 32, 64, 128, 144, 256, 288),
        max_rows=512,
        max_experts=512,
        max_local_experts=None,
        max_local_experts_any_release=None,
        max_experts_times_ranks=None,
        hidden=(7168, 7168, 1),
        max_top_k=8,
        nodes=None,
        masks_tokens=False,
    ),
}


@dataclass(frozen=True)
class Violation:
    """A limit that a configuration breaks.

    Attributes:
        limit: what is limited.
        found: the value found.
        allowed: what the vendor documents.
        remedy: what to change.
    """

    limit: str
    found: str
    allowed: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.limit} is {self.found}, {self.allowed} is supported: {self.remedy}"


def mc2_limits(facts: MoEFacts) -> Mc2Limits:
    """The row of the table for these facts."""
    return MC2_LIMITS[facts.soc, facts.operator_version]


def mc2_violations(facts: MoEFacts, *, any_release: bool) -> tuple[Violation, ...]:
    """Limits that rule MC2 out whatever the token count.

    Args:
        any_release: keep to what every edition of the vendor's documentation allows; else to the newest edition.
    """
    limits = mc2_limits(facts)
    on = f"on {facts.soc.value} (operators v{facts.operator_version})"
    found: list[Violation] = []

    def demand(holds: bool, limit: str, value: object, allowed: str, remedy: str) -> None:
        if not holds:
            found.append(Violation(f"{limit} {on}", str(value), allowed, remedy))

    demand(
        facts.ep_size > 1,
        "expert parallel size",
        facts.ep_size,
        "at least 2",
        "enable expert parallelism over more ranks",
    )
    if facts.ep_size > 1:
        sizes = limits.ep_sizes_any_release if any_release else limits.ep_sizes
        demand(facts.ep_size in sizes, "expert parallel size", facts.ep_size, _describe(sizes), "change TP x DP")
    demand(
        facts.num_experts % facts.ep_size == 0,
        "number of physical experts",
        facts.num_experts,
        f"a multiple of the expert parallel size {facts.ep_size}",
        "change TP x DP or add redundant experts",
    )
    experts = limits.max_experts
    demand(facts.num_experts <= experts, "number of physical experts", facts.num_experts, f"at most {experts}", _OTHER)
    local = facts.local_experts
    most_local = limits.max_local_experts_any_release if any_release else limits.max_local_experts
    if most_local is not None:
        demand(
            local <= most_local, "experts per rank", local, f"at most {most_local}", "use more expert parallel ranks"
        )
    product = limits.max_experts_times_ranks
    if product is not None:
        found_product = local * facts.ep_size
        demand(found_product <= product, "experts per rank x ranks", found_product, f"at most {product}", _OTHER)
    low, high, step = limits.hidden
    demand(
        low <= facts.hidden_size <= high and facts.hidden_size % step == 0,
        "hidden size",
        facts.hidden_size,
        f"{low}..{high}" + (f" in steps of {step}" if step > 1 else "") if low != high else str(low),
        _OTHER,
    )
    most_k = min(limits.max_top_k, facts.num_experts)
    demand(facts.top_k <= most_k, "top-k", facts.top_k, f"at most {most_k}", _OTHER)
    demand(
        facts.dtype in HIDDEN_DTYPES, "dtype", facts.dtype, " or ".join(HIDDEN_DTYPES), "serve with --dtype bfloat16"
    )
    if limits.nodes is not None:
        demand(facts.num_nodes in limits.nodes, "number of nodes", facts.num_nodes, _describe(limits.nodes), _OTHER)
    return tuple(found)


def mc2_row_violation(facts: MoEFacts, rows: int) -> Violation | None:
    """The limit on tokens per rank and call, when ``rows`` breaks it."""
    limits = mc2_limits(facts)
    if 1 <= rows <= limits.max_rows:
        return None
    return Violation(
        f"tokens per rank and step on {facts.soc.value} (operators v{facts.operator_version})",
        str(rows),
        f"1..{limits.max_rows}",
        f"at most {limits.max_rows * facts.tp_size} tokens per DP rank (--max-num-batched-tokens) fit, "
        "or let the method be chosen per step",
    )


def hccl_buffsize_floor_mib(facts: MoEFacts, rows: int, shared_experts: int = 1) -> int:
    """Smallest ``HCCL_BUFFSIZE`` in MiB for ``rows`` tokens per rank; all ranks need the same.

    Args:
        facts: constants.
        rows: tokens per rank and call.
        shared_experts: the ``shared_expert_num`` argument of the operators; 1 is their default, and means none as long
            as no rank is dedicated to shared experts.

    Formulas: op-plugin reference, v2 pages (full mesh) and, for A3, the v1 page. The v1 page for A2 gives none; the
    full mesh kernel's formula is used there.
    """
    ep, local, hidden, top_k = facts.ep_size, facts.local_experts, facts.hidden_size, facts.top_k
    if facts.soc is Soc.A2:
        size = 2 * (rows * ep * min(local, top_k) * hidden * 2 + 2 * MIB)
    elif facts.operator_version == 2:
        dispatch = local * rows * ep * _align(_align(2 * hidden, 32) + 64, 512)
        size = 2 * (dispatch + (top_k + shared_experts) * rows * _align(2 * hidden, 512))
    else:
        size = 2 * (rows * 2 * (hidden + 128) * (ep * local + top_k + 1)) + 2 * MIB
    return -(-size // MIB)


def max_rows_for_buffsize(facts: MoEFacts, buffsize_mib: int) -> int:
    """Most tokens per rank that a window of ``buffsize_mib`` MiB holds, 0 when not even one."""
    low, high = 0, mc2_limits(facts).max_rows
    while low < high:
        middle = (low + high + 1) // 2
        if hccl_buffsize_floor_mib(facts, middle) <= buffsize_mib:
            low = middle
        else:
            high = middle - 1
    return low


_OTHER = "use the allgather or alltoall method for this model and cluster"


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def _describe(values: Collection[int]) -> str:
    if isinstance(values, range):
        return f"{values.start}..{values.stop - 1}"
    return "one of " + ", ".join(str(value) for value in values)
