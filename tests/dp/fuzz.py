# SPDX-License-Identifier: Apache-2.0
"""Script: random schedules in N real processes through vLLM's real decision code and the real seams.

    python -m tests.dp.fuzz FIRST_SEED RANKS:SCHEDULES[:TRANSPORT]...       (under the virtual NPU)

Every rank must decide the same, and what vLLM's own post-processing makes of all ranks' votes; one collective per step, or
none through shared memory; no hang. A failure names the seed; ``SEED RANKS:1`` runs it again.
"""

from __future__ import annotations

import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

import sys
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from tests.support.collectives import CollectiveCounter
from tests.support.ranks import run_ranks, values_of
from vllm_ascend_patch.core.dp.vector import GraphMode
from vllm_ascend_patch.seams import serving

from .schedules import Schedule, make_schedule
from .sessions import host_session

if find_spec("vllm.v1.worker.dp_utils"):
    from .upstream_oracle import SITUATIONS, Oracle
    from .upstream_runner import DecidingRunner
else:  # releases whose ranks tell each other token counts and nothing else
    from .counts_runner import SITUATIONS, DecidingRunner, Oracle  # type: ignore[assignment]

SPECULATIVE = "speculative" in SITUATIONS

TIMEOUT = 30.0
"""Seconds until a missing rank is an error."""


def run_rank(rank: int, size: int, seeds: list[int], transport: str) -> list[Any]:
    """What each step of each schedule decided, the collectives that it took, and the vectors that it sent."""
    session = host_session(rank, size, timeout=TIMEOUT, transport=transport)
    runners = {speculative: DecidingRunner(rank, size, speculative) for speculative in {False, SPECULATIVE}}
    for runner in runners.values():
        serving.entering(runner).session = session
    results = []
    for seed in seeds:
        schedule = make_schedule(seed, size, SPECULATIVE)
        decided = []
        for row in schedule.steps:
            before = session.channel.posted
            with CollectiveCounter() as counter:
                outcome = runners[schedule.speculative].run(row[rank])
            decided.append((outcome, dict(counter.calls), session.channel.posted - before))
        results.append(decided)
    session.close()
    return results


def check(
    seed: int, schedule: Schedule, per_rank: list[Any], oracle: Oracle, size: int, transport: str
) -> Counter[str]:
    """Compare all ranks with each other and with the oracle. Returns what was seen."""
    seen: Counter[str] = Counter()
    for number, row in enumerate(schedule.steps):
        where = SimpleNamespace(seed=seed, step=number, ranks=size, row=row)
        expected = oracle.decide(row)
        for rank in range(size):
            outcome, calls, posted = per_rank[rank][number]
            found = [(mode, across) for mode, _, across, _ in outcome]
            assert found == expected, f"rank {rank} decided {found}, vLLM {expected}: {where}"
            assert all(across[rank] == own for _, own, across, _ in outcome), f"rank {rank} runs another count: {where}"
            # Profiling runs foresee nothing, so their drafter forwards take a collective each.
            wanted = 1 if not row[0].profile else len(expected)
            taken = wanted if transport == "cpu" else 0
            assert sum(calls.values()) == taken, f"rank {rank}: {calls} instead of {taken} collective(s): {where}"
            assert posted == wanted, f"rank {rank}: {posted} vectors instead of {wanted}: {where}"
            assert all(key == ("allreduce_", size, "cpu", 80 * size) for key in calls), f"rank {rank}: {calls}: {where}"
        seen["steps"] += 1
        seen["idle"] += sum(s.dummy for s in row)
        seen["fewer requests than ranks"] += 0 < sum(bool(s.requests) for s in row) < size
        seen["all idle"] += all(s.dummy for s in row)
        seen["graph"] += expected[0][0] != 0
        seen["whole step"] += expected[0][0] == GraphMode.FULL
        seen["whole step refused"] += expected[0][0] != GraphMode.FULL and any(step.dummy for step in row)
        seen["eager"] += expected[0][0] == 0
        seen["speculative"] += schedule.speculative
        seen["profiling"] += bool(row[0].profile)
    return seen


def main(size: int, count: int, first_seed: int, transport: str = "cpu") -> None:
    seeds = list(range(first_seed, first_seed + count))
    print(f"{size} ranks over {transport}, seeds {seeds[0]} to {seeds[-1]}", flush=True)
    results = values_of(run_ranks(run_rank, size, seeds, transport, timeout=60 + 0.5 * count))
    oracles = {speculative: Oracle(speculative) for speculative in {False, SPECULATIVE}}
    seen: Counter[str] = Counter()
    for index, seed in enumerate(seeds):
        schedule = make_schedule(seed, size, SPECULATIVE)
        seen += check(seed, schedule, [r[index] for r in results], oracles[schedule.speculative], size, transport)
    print(f"{count} schedules: " + ", ".join(f"{name} {number}" for name, number in sorted(seen.items())))
    print(f"{size} ranks agreed", flush=True)


if __name__ == "__main__":
    print("situations: " + ", ".join(SITUATIONS))
    for part in sys.argv[2:]:
        ranks, schedules, *transport = part.split(":")
        main(int(ranks), int(schedules), int(sys.argv[1]), *transport)
