# SPDX-License-Identifier: Apache-2.0
"""Random schedules of a data-parallel deployment: what each rank's scheduler hands out, step by step. Pure; from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

SPECULATIVE_TOKENS = 3
NEAR_THE_END = 4095
"""A context length at which drafts no longer fit the model."""


@dataclass(frozen=True)
class RankRequest:
    """One request in one step."""

    computed: int
    scheduled: int
    prompt: int
    drafts: int = 0


@dataclass(frozen=True)
class RankStep:
    """One rank's step: requests, or a dummy step, or a profiling run of ``profile`` tokens. Times in seconds."""

    requests: tuple[RankRequest, ...] = ()
    dummy: bool = False
    profile: int = 0
    delay: float = 0.0
    preparation: float = 0.0


@dataclass(frozen=True)
class Schedule:
    speculative: bool
    steps: tuple[tuple[RankStep, ...], ...]
    """``[step][rank]``"""


def _prefill(rng: random.Random) -> RankRequest:
    prompt = rng.choice([1, 3, rng.randint(1, 20), rng.randint(20, 300)])
    computed = rng.choice([0, 0, rng.randint(0, prompt - 1)])
    return RankRequest(computed, rng.randint(1, prompt - computed), prompt)


def _decode(rng: random.Random, speculative: bool) -> RankRequest:
    prompt = rng.randint(1, 50)
    computed = NEAR_THE_END - SPECULATIVE_TOKENS if rng.random() < 0.05 else prompt + rng.randint(0, 50)
    drafts = rng.choice([0, SPECULATIVE_TOKENS, SPECULATIVE_TOKENS]) if speculative else 0
    return RankRequest(computed, 1 + drafts, prompt, drafts)


def _rank_step(rng: random.Random, speculative: bool, busy: float) -> RankStep:
    if rng.random() > busy:
        return RankStep(dummy=True)
    kind = rng.choice(["prefill", "decode", "decode", "mixed"])
    prefills = 0 if kind == "decode" else rng.randint(1, 3)
    decodes = 0 if kind == "prefill" else rng.randint(1, 12)
    requests = [_decode(rng, speculative) for _ in range(decodes)] + [_prefill(rng) for _ in range(prefills)]
    if rng.random() < 0.1 and len(requests) > 1:
        requests = requests[: rng.randint(1, len(requests) - 1)]  # the others were aborted
    return RankStep(tuple(requests))


def make_schedule(seed: int, ranks: int, drafts: bool = True) -> Schedule:
    """A few steps of ``ranks`` ranks: idle, prefill, decode, mixed, speculative, aborts, fewer requests than ranks, one rank
    far slower than the others, profiling runs on all ranks. Without ``drafts`` none is speculative."""
    rng = random.Random(seed)
    speculative = rng.random() < 0.4 and drafts
    busy = rng.choice([0.0, 1.0 / ranks, 0.5, 0.9, 1.0])  # the second: fewer requests than ranks
    slow_rank = rng.randrange(ranks) if rng.random() < 0.2 else None
    steps = []
    for _ in range(rng.randint(2, 8)):
        if rng.random() < 0.05:
            steps.append(tuple(RankStep(profile=rng.choice([7, 64])) for _ in range(ranks)))
            continue
        row = []
        for rank in range(ranks):
            step = _rank_step(rng, speculative, busy)
            delay = 0.02 if rank == slow_rank else rng.choice([0.0, 0.0, rng.random() * 1e-3])
            row.append(RankStep(step.requests, step.dummy, 0, delay, rng.choice([0.0, rng.random() * 5e-4])))
        steps.append(tuple(row))
    return Schedule(speculative, tuple(steps))
