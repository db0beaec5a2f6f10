# SPDX-License-Identifier: Apache-2.0
"""Random step vectors and the matrix that an all-reduce makes of them. Everything follows from a seed."""

from __future__ import annotations

import random

import numpy as np

from vllm_ascend_patch.core.dp.vector import NUM_FIELDS, DraftPlan, DraftVote, StepVector, pack


def matrix(vectors: list[StepVector], sequences: list[int] | None = None) -> list[list[int]]:
    rows = np.zeros((NUM_FIELDS, len(vectors)), dtype=np.int32)
    for rank, vector in enumerate(vectors):
        pack(vector, sequences[rank] if sequences else 7, rows[:, rank])
    return rows.tolist()


def random_draft(rng: random.Random) -> DraftVote:
    tokens = rng.randint(1, 600)
    return DraftVote(tokens, tokens + rng.choice([0, 0, rng.randint(1, 64)]), rng.choice([0, 1]))


def random_vector(rng: random.Random) -> StepVector:
    idle = rng.random() < 0.3
    tokens = rng.randint(1, 4) if idle else rng.choice([0, 1, rng.randint(1, 64), rng.randint(1, 5000)])
    plan = DraftPlan(random_draft(rng), random_draft(rng)) if rng.random() < 0.8 else None
    return StepVector(
        tokens=tokens,
        padded_tokens=tokens + rng.choice([0, rng.randint(1, 300)]),
        microbatch_vote=rng.random() < 0.8,
        graph_mode=rng.choice([0, 1, 2, 2, 2]),
        with_prefill=not idle and rng.random() < 0.3,
        idle=idle,
        pad_vote=rng.random() < 0.7,
        drafts=plan,
    )


def random_world(seed: int) -> list[StepVector]:
    """1 to 16 ranks. Drawn from one seed: hypothesis' own draws would take most of the tests' time."""
    rng = random.Random(seed)
    return [random_vector(rng) for _ in range(rng.randint(1, 16))]
