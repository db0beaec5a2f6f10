# SPDX-License-Identifier: Apache-2.0
"""What a method costs in a step, estimated: bytes over the links, launches, and the host's wait. Pure arithmetic.

An estimate orders methods, it predicts no time: links are shared, launches overlap, and what the vendor's operators do
inside is theirs. Everything here follows from constants and the agreed token count, so all ranks order alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from .arithmetic import ceil_div
from .comm import ALLGATHER, ALLTOALL, HIERARCHICAL, MC2
from .limits import MoEFacts
from .soc import Soc
from .traffic import method_traffic


@dataclass(frozen=True)
class Links:
    """What one rank can send, one way, in bytes per microsecond (1000 are a GB/s).

    Attributes:
        inside: to ranks of its host, all together.
        between: to ranks of other hosts.
    """

    inside: float
    between: float


LINKS: dict[Soc, Links] = {
    # The figures that are given for an Atlas 800 A2 server: seven HCCS links of 56 GB/s both ways to the other NPUs, 392
    # GB/s together, halved here; one RoCE port of 200 Gbit/s per NPU. Taken as estimates: not checked on hardware.
    Soc.A2: Links(inside=196_000, between=25_000),
    # "Serving LLMs on Huawei CloudMatrix384" (Zuo et al., June 2025): 392 GB/s one way per Ascend 910C, which is two devices
    # to torch, over one bus inside and between the hosts of a super-node. Taken as estimates too. Hosts that only RoCE joins
    # have far less: VLLM_ASCEND_PATCH_LINKS.
    Soc.A3: Links(inside=196_000, between=196_000),
}

DEVICES_PER_HOST = {Soc.A2: 8, Soc.A3: 16}
"""Of the servers that are sold as Atlas 800 A2 and A3, as torch counts devices."""

LAUNCHES = {ALLGATHER: 18, MC2: 5, ALLTOALL: 15, HIERARCHICAL: 24}
"""Operators and collectives of a layer with its expert MLP, as ``benchmarks/moe_host_cost.py`` counts them (even steps)."""

LAUNCH_US = 8.0
"""Microseconds of the host for one of them. An estimate, of the order that operator timings on Ascend hosts show."""

HOST_READ_US = 50.0
"""Microseconds that the host loses when it waits for sizes on the device, and then has nothing queued. An estimate."""

HOST_READS = {ALLTOALL: 1, HIERARCHICAL: 1}


@dataclass(frozen=True)
class Cost:
    """A method's estimate for one token count.

    Attributes:
        method: its name.
        fixed_us: launches and host reads.
        bytes: what a rank sends.
        wire_us: the time of that.
    """

    method: str
    fixed_us: float
    bytes: float
    wire_us: float

    @property
    def microseconds(self) -> float:
        """The whole."""
        return self.fixed_us + self.wire_us


def estimate(facts: MoEFacts, method: str, tokens: int) -> Cost:
    """The cost of a layer when every DP rank has ``tokens`` tokens."""
    traffic, links = method_traffic(facts, method, tokens), links_of(facts)
    between = between_hosts(facts, method, tokens)
    wire = between / links.between + (traffic.over_ep - between + traffic.tp) / links.inside
    fixed = LAUNCHES[method] * LAUNCH_US + HOST_READS.get(method, 0) * HOST_READ_US
    return Cost(method, fixed, traffic.total, wire)


def between_hosts(facts: MoEFacts, method: str, tokens: int) -> float:
    """Bytes that a rank sends to other hosts."""
    traffic = method_traffic(facts, method, tokens)
    if traffic.between_hosts is not None:
        return traffic.between_hosts
    gathers_over_dp = method == ALLGATHER and not facts.sequence_parallel
    return traffic.over_ep * _across_hosts(facts, facts.dp_size if gathers_over_dp else facts.ep_size)


def links_of(facts: MoEFacts) -> Links:
    """Those that were given, else the SoC's."""
    if facts.links is None:
        return LINKS[facts.soc]
    inside, between = facts.links
    return Links(1000 * inside, 1000 * between)


def describe(facts: MoEFacts, method: str) -> str:
    """The method's figures in words, the same for every token count."""
    tokens = 1024 * facts.tp_size
    some, more = estimate(facts, method, tokens), estimate(facts, method, 2 * tokens)
    kib, us = (more.bytes - some.bytes) / tokens / 1024, (more.wire_us - some.wire_us) / tokens
    return f"{method} {some.fixed_us:.0f} us + {us:.3f} us ({kib:.1f} KiB) per token"


def _across_hosts(facts: MoEFacts, ranks: int) -> float:
    """The share of a rank's peers that are on other hosts, among the ``ranks`` of the DP or of the EP group.

    Where it is not known which ranks share a host, they count hosts by what they are told of their own, which differs where
    hosts have unequal parts of the ranks; that there are several is what all of them see. So the ranks of a host are then as
    many as a server has devices.
    """
    if ranks == 1 or (facts.num_nodes == 1 and not facts.ranks_per_host):
        return 0.0
    apart = facts.tp_size if ranks == facts.dp_size else 1
    if facts.ranks_per_host:
        shares = [count / sum(facts.ranks_per_host) for count in facts.ranks_per_host]
    else:
        hosts = max(2, ceil_div(ranks * apart, DEVICES_PER_HOST[facts.soc]))
        shares = [1 / hosts] * hosts
    return sum(share * (ranks - max(ranks * share, 1)) for share in shares) / (ranks - 1)
